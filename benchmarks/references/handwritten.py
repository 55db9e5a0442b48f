"""LIMIT-2: LIMIT-1 that reads a token and writes twice, by hand, on asyncpg.

It believes every token, limits nobody, checks nothing, loses a question that fails and
goes on asking for whoever has hung up.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import jwt
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from pydantic_core import from_json, to_json

from benchmarks.references.common import (
    DATABASE_URL,
    JSON,
    KEY,
    MODEL_URL,
    PEOPLE,
    POOL_SIZE,
    serve,
)

SCHEMA = f"""
CREATE TABLE users (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text
);
CREATE TABLE questions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id bigint NOT NULL REFERENCES users,
    content text NOT NULL,
    answer text,
    total_tokens integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    answered_at timestamptz
);
CREATE INDEX questions_user_id_id ON questions (user_id, id DESC);
INSERT INTO users (name) SELECT 'person' FROM generate_series(1, {PEOPLE});
"""
INSERT = """
INSERT INTO questions (user_id, content) VALUES ($1, $2) RETURNING id, created_at
"""
UPDATE = """
UPDATE questions SET answer = $2, total_tokens = $3, answered_at = now() WHERE id = $1
"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    pool = asyncpg.create_pool(DATABASE_URL, min_size=POOL_SIZE, max_size=POOL_SIZE)
    http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async with pool as app.state.pool, http as app.state.http:
        await app.state.pool.execute(SCHEMA)
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/questions")
async def ask(request: Request) -> Response:
    user_id = read_token(request)
    question = from_json(await request.body())
    content, is_streamed = question["content"], "stream" in question
    pool, http = request.app.state.pool, request.app.state.http
    question_id, created_at = await pool.fetchrow(INSERT, user_id, content)
    messages = [{"role": "user", "content": content}]
    body = {"model": "fake", "messages": messages, "stream": is_streamed}
    if is_streamed:
        answer = await http.post(MODEL_URL, data=to_json(body), headers=JSON)
        relayed = relay(answer, pool, question_id)
        return StreamingResponse(relayed, media_type="text/event-stream")
    async with http.post(MODEL_URL, data=to_json(body), headers=JSON) as answer:
        reply = from_json(await answer.read())
    text, tokens = (
        reply["choices"][0]["message"]["content"],
        reply["usage"]["total_tokens"],
    )
    await pool.execute(UPDATE, question_id, text, tokens)
    told = {
        "id": question_id,
        "content": content,
        "answer": text,
        "created_at": created_at,
    }
    return Response(to_json(told), 201, media_type="application/json")


def read_token(request: Request) -> int:
    try:
        token = request.headers["authorization"].removeprefix("Bearer ")
        return int(jwt.decode(token, KEY, algorithms=["HS256"])["sub"])
    except (KeyError, jwt.InvalidTokenError):
        raise HTTPException(401) from None


async def relay(
    answer: aiohttp.ClientResponse, pool: Any, question_id: int
) -> AsyncIterator[bytes]:
    text = []
    async with answer:
        async for line in answer.content:
            yield line
            if line.startswith(b"data: {"):
                delta = from_json(line[6:])["choices"][0]["delta"]
                text.append(delta.get("content", ""))
    await pool.execute(UPDATE, question_id, "".join(text), len(text))


if __name__ == "__main__":
    serve(app)
