// A journey through the client that @hey-api/openapi-ts generates.
import assert from "node:assert/strict";
import {
  askQuestion,
  getQuestion,
  listMyQuestions,
  logIn,
  register,
  streamAnswer,
} from "./hey";
import { client } from "./hey/client.gen";
import type { StreamEvent, StreamFrame } from "./hey/types.gen";

async function main(): Promise<void> {
  client.setConfig({ baseUrl: process.env.VOPROS_URL! });
  const account = { username: "hey", password: "correct horse battery staple" };
  const made = await register({ body: account });
  assert.equal(made.data?.username, "hey");
  const signedIn = await logIn({ body: { ...account, grant_type: "password" } });
  client.setConfig({ auth: () => signedIn.data!.access_token });

  const asked = await askQuestion({ body: { content: "Which river?" } });
  assert.equal(asked.data?.answer, "Answer to: Which river?");
  const refused = await askQuestion({ body: { content: " " } });
  assert.equal(refused.error?.code, "validation_failed");
  const missing = await getQuestion({ path: { question_id: 999_999 } });
  assert.equal(missing.error?.code, "question_not_found");

  const { stream } = await streamAnswer({ body: { content: "Which sea?" } });
  const pieces: string[] = [];
  let last: StreamEvent | StreamFrame | undefined;
  for await (const event of stream) {
    // Clients that do not know the media type get the stream as one text.
    if (typeof event === "string") throw new Error("not an event");
    if ("text" in event && typeof event.text === "string") pieces.push(event.text);
    last = event;
  }
  assert.equal(pieces.join(""), "Answer to: Which sea?");
  assert.equal(last && "status" in last && last.status, "answered");
  const newest = await listMyQuestions();
  assert.deepEqual(
    newest.data?.map((question) => question.content),
    ["Which sea?", "Which river?"],
  );
}

void main();
