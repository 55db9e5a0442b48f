"""LIMIT-1: the least that FastAPI and aiohttp can do. Bytes in, bytes out.

It knows neither who asks nor what; nothing is stored.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from benchmarks.references.common import JSON, MODEL_URL, serve


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as app.state.http:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/questions")
async def forward(request: Request) -> Response:
    body, http = await request.body(), request.app.state.http
    if b'"stream":true' in body:
        answer = await http.post(MODEL_URL, data=body, headers=JSON)
        return StreamingResponse(relay(answer), media_type="text/event-stream")
    async with http.post(MODEL_URL, data=body, headers=JSON) as answer:
        content = await answer.read()
        return Response(content, answer.status, media_type="application/json")


async def relay(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:
        async for data in answer.content.iter_any():
            yield data


if __name__ == "__main__":
    serve(app)
