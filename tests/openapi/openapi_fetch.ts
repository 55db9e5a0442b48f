// A journey through openapi-fetch, with the types of openapi-typescript.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, operations, paths } from "./schema";

type Ids = keyof operations;
const ids: Ids[] = ["askQuestion", "streamAnswer", "listMyQuestions"];

async function main(): Promise<void> {
  const client = createClient<paths>({ baseUrl: process.env.VOPROS_URL! });
  const account = { username: "fetch", password: "correct horse battery staple" };
  await client.POST("/auth/register", { body: account });
  const signedIn = await client.POST("/auth/token", {
    body: { ...account, grant_type: "password" },
    headers: { "Content-Type": "application/x-www-form-urlencoded" },
  });
  const token: components["schemas"]["Token"] = signedIn.data!;
  client.use({
    onRequest: ({ request }) => {
      request.headers.set("Authorization", `Bearer ${token.access_token}`);
    },
  });
  const asked = await client.POST("/questions", { body: { content: "Which river?" } });
  assert.equal(asked.data?.answer, "Answer to: Which river?");
  const refused = await client.POST("/questions", { body: { content: " " } });
  assert.equal(refused.error?.code, "validation_failed");

  const streamed = await client.POST("/questions/stream", {
    body: { content: "Which sea?" },
    parseAs: "stream",
  });
  let text = "";
  for await (const piece of streamed.data!.pipeThrough(new TextDecoderStream())) {
    text += piece;
  }
  assert.match(text, /^event: meta\n/);
  assert.match(text, /\nevent: done\ndata: {.*"answer":"Answer to: Which sea\?"/);
  assert.equal(ids.length, 3);
}

void main();
