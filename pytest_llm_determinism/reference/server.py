"""The HTTP routes: OpenAI's models, chat completions, completions and responses, plain and streamed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from . import MODELS, chat, completions, responses
from .answers import Answers, Models, failure_event
from .engine import Engine
from .model import CONTEXT, DEFAULT_CAPACITY_FACTOR
from .questions import ApiError, Body, Question, read_body, wrong

__all__ = ["create_app", "serve"]


class _Api(Protocol):
    """What the modules of the two completion APIs offer."""

    def read(self, body: Body) -> Question: ...

    def whole(self, question: Question, answers: Answers, fingerprint: str) -> Body: ...

    def stream(self, question: Question, answers: Answers, fingerprint: str) -> AsyncIterator[str]: ...


def create_app(capacity_factor: float = DEFAULT_CAPACITY_FACTOR) -> Starlette:
    """The server as an ASGI application. `capacity_factor` sizes the expert buffers of `moe-capacity`."""
    if not 0 < capacity_factor < float("inf"):
        raise ValueError(f"the capacity factor must be a positive number, not {capacity_factor!r}")
    models = Models(capacity_factor)

    async def asked(request: Request, read: Callable[[Body], Question]) -> tuple[Body, Question, Engine]:
        body = await read_body(request)
        name = body.get("model")
        if name is None:
            raise ApiError("You must provide a model parameter.", param="model")
        if not isinstance(name, str):
            raise wrong("model", "a string", name)
        known(name)
        question = read(body)
        longest = max(map(len, question.prompts))
        if longest >= CONTEXT:
            raise ApiError(
                f"This model's maximum context length is {CONTEXT} tokens. However, your prompt has {longest} tokens.",
                param="messages" if "messages" in body else "input" if "input" in body else "prompt",
                code="context_length_exceeded",
            )
        engine = models.ready(name)
        if engine is None:
            # Building a network takes a moment in which other requests should be served.
            engine = await asyncio.to_thread(models.engine, name)
        return body, question, engine

    def known(name: str) -> None:
        if name not in MODELS:
            raise ApiError(
                f"The model `{name}` does not exist. The reference server has: {', '.join(MODELS)}.",
                status=404,
                param="model",
                code="model_not_found",
            )

    async def reply(
        request: Request,
        question: Question,
        engine: Engine,
        whole: Callable[[Answers], Body],
        stream: Callable[[Answers], AsyncIterator[str]],
    ) -> Response:
        if question.stream:

            async def events() -> AsyncIterator[str]:
                with Answers(question, engine) as answers:
                    try:
                        async for event in stream(answers):
                            yield event
                    except ApiError as error:
                        yield failure_event(error)

            return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        with Answers(question, engine) as answers:
            if not await answers.finished(request):
                return Response(status_code=499)
            return JSONResponse(whole(answers))

    def answering(api: _Api) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            _, question, engine = await asked(request, api.read)
            fingerprint = models.fingerprint(question.model)
            return await reply(
                request,
                question,
                engine,
                lambda answers: api.whole(question, answers, fingerprint),
                lambda answers: api.stream(question, answers, fingerprint),
            )

        return answer

    async def answer_response(request: Request) -> Response:
        body, question, engine = await asked(request, responses.read)
        head = responses.begin(question, body, models.fingerprint(question.model))
        return await reply(
            request,
            question,
            engine,
            lambda answers: responses.whole(question, answers, head),
            lambda answers: responses.stream(question, answers, head),
        )

    started = int(time.time())

    def card(name: str) -> Body:
        return {"id": name, "object": "model", "created": started, "owned_by": "pytest-llm-determinism"}

    async def list_models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card(name) for name in MODELS]})

    async def one_model(request: Request) -> Response:
        known(request.path_params["name"])
        return JSONResponse(card(request.path_params["name"]))

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"Invalid URL ({request.method} {request.url.path})"
        return ApiError(message, status=error.status_code, code="unknown_url").response()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            models.close()

    return Starlette(
        routes=[
            Route("/v1/models", list_models),
            Route("/v1/models/{name}", one_model),
            Route("/v1/chat/completions", answering(chat), methods=["POST"]),
            Route("/v1/completions", answering(completions), methods=["POST"]),
            Route("/v1/responses", answer_response, methods=["POST"]),
        ],
        exception_handlers={ApiError: refused, HTTPException: no_route},
        lifespan=lifespan,
    )


class _Server(uvicorn.Server):
    """Says when it accepts connections, and ends on a signal without raising it again."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The original repeats the signal when it is done, which ends in a traceback of KeyboardInterrupt.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    capacity_factor: float = DEFAULT_CAPACITY_FACTOR,
    announce: Callable[[str], object] = print,
    stop: threading.Event | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until `stop` is set. Port 0 takes any free port.

    `announce` is called once with the base URL, as soon as connections are accepted. Raises `OSError` when
    the address cannot be bound.
    """
    app = create_app(capacity_factor)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listener:
        # Inherited by each connection. asyncio sets it only on sockets that name their protocol, and without it
        # an answer sent in two pieces waits for an acknowledgement in between.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_keep_alive=60, timeout_graceful_shutdown=1
        )
        server = _Server(config, lambda: announce(f"http://{shown}:{bound}/v1"))
        if stop is not None:

            def watch() -> None:
                stop.wait()
                server.should_exit = True

            threading.Thread(target=watch, daemon=True).start()
        server.run(sockets=[listener])
