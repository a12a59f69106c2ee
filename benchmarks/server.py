"""A model server that answers each call after 25 ms, in a process of its own; prints its base URL."""

from __future__ import annotations

import asyncio
import itertools
import socket

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

LATENCY = 0.025
numbers = itertools.count()


async def chat(request: Request) -> JSONResponse:
    body = await request.json()
    await asyncio.sleep(LATENCY)
    message = {"role": "assistant", "content": "The capital of France is Paris. " * 16}
    return JSONResponse(
        {
            "id": f"chatcmpl-{next(numbers)}",
            "object": "chat.completion",
            "created": 1700000000,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 128, "total_tokens": 135},
        }
    )


if __name__ == "__main__":
    listening = socket.socket()
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", flush=True)
    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listening])
