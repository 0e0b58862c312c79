"""The routes: models, completions, chat completions, health and metrics."""

import asyncio
import hmac
import itertools
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import Generation
from rationalyst_jax.serve.answers import Answers
from rationalyst_jax.serve.pieces import Vocabulary
from rationalyst_jax.serve.protocol import Ask, Served, read_chat, read_completion
from rationalyst_jax.serve.reader import Refused, parse_json
from rationalyst_jax.serve.worker import Asked, Worker

WATCH = 0.2  # seconds between two looks whether a client is still there


@dataclass(frozen=True)
class Limits:
    """What a server takes: bytes of a body, engine requests (contexts) at work, and in one body."""

    body: int = 8 * 2**20
    at_work: int = 4096
    contexts: int = 1024


def make_app(
    engine: Engine, model: str, limits: Limits, *, api_key: str | None = None, seed: int | None = None
) -> Starlette:
    """The application that serves `engine` under the name `model`.

    api_key: what clients must know. seed: of the noise of requests that name none, each of which gets its own
    by its number since the start; by default another one at each start.
    """
    worker = Worker(engine)
    numbers = itertools.count()
    served = Served(engine.tokenizer, engine.positions, engine.model.config.vocab_size)
    vocabulary = Vocabulary(engine.tokenizer, served.vocabulary)
    seed = secrets.randbits(32) if seed is None else seed
    listed = {"id": model, "object": "model", "created": 0, "owned_by": "rationalyst_jax"}
    listed["max_model_len"] = engine.positions

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    async def answer(request: Request, read: Callable[..., Ask]) -> Response:
        check_key(request)
        body = await _body(request, limits.body)
        number = next(numbers)
        noise = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        try:
            if isinstance(body, dict) and body.get("model") is not None:
                check_model(body["model"])
            ask = read(body, served, noise)
        except RecursionError:
            raise Refused(400, "the body is nested too deeply") from None
        if len(ask.contexts) > limits.contexts:
            raise Refused(413, f"{len(ask.contexts)} prompts, {limits.contexts} is the most", "prompt")
        if worker.at_work + len(ask.contexts) > limits.at_work:
            raise Refused(429, "too many requests are at work, try again later", None, "rate_limit_exceeded")
        answers = Answers(ask, vocabulary, model, number)
        follow = partial(worker.ask, follow=ask.stream)
        generated = [follow(one) for one in ask.generate]
        scored = [one and worker.ask(one) for one in ask.score]
        everything = [*generated, *(one for one in scored if one)]
        try:
            if ask.stream:
                chunks = _chunks(answers, generated, worker)
                first = await _while_connected(request, asyncio.ensure_future(anext(chunks)))
                # Until here a refusal is a status; from here on what is left is given up by the stream's end.
                return StreamingResponse(_events(first, chunks), media_type="text/event-stream")
            await _while_connected(request, asyncio.gather(*(one.answer for one in everything)))
        except BaseException:
            _cancel(worker, everything)
            raise
        done = [one.answer.result() for one in generated]
        return JSONResponse(answers.whole(done, [one and one.answer.result() for one in scored]))

    def check_key(request: Request) -> None:
        if api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), api_key.encode()):
            raise Refused(401, "the API key is missing or wrong", None, "invalid_api_key")

    def check_model(name: Any) -> None:
        if name != model:
            message = f"the model {name!r:.100} does not exist, only {model!r}"
            raise Refused(404, message, "model", "model_not_found")

    async def models(request: Request) -> Response:
        check_key(request)
        return JSONResponse({"object": "list", "data": [listed]})

    async def one_model(request: Request) -> Response:
        check_key(request)
        check_model(request.path_params["name"])
        return JSONResponse(listed)

    async def health(_: Request) -> Response:
        return JSONResponse(
            {"status": "ok"} if worker.alive else {"status": "failed"}, 200 if worker.alive else 503
        )

    async def metrics(_: Request) -> Response:
        totals = {f"rationalyst_{name}_total": value for name, value in sorted(worker.totals.items())}
        gauges = {
            "rationalyst_requests_at_work": worker.at_work,
            "rationalyst_cache_pages_in_use": engine.prefix_cache.in_use,
            "rationalyst_cache_pages": engine.prefix_cache.pages,
        }
        lines = [f"# TYPE {name} counter\n{name} {value}" for name, value in totals.items()]
        lines += [f"# TYPE {name} gauge\n{name} {value}" for name, value in gauges.items()]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    def route(path: str, read: Callable[..., Ask]) -> Route:
        async def endpoint(request: Request) -> Response:
            return await answer(request, read)

        return Route(path, endpoint, methods=["POST"])

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            route("/v1/completions", read_completion),
            route("/v1/chat/completions", read_chat),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        lifespan=lifespan,
        exception_handlers={
            Refused: _refusal,
            HTTPException: _refusal,
            Exception: _refusal,
        },
    )


async def _body(request: Request, most: int) -> Any:
    """The JSON of a body; it is not read further than it may be long."""
    read = bytearray()
    try:
        async for chunk in request.stream():
            read += chunk
            if len(read) > most:
                raise Refused(413, f"the body is longer than {most} bytes")
    except ClientDisconnect:
        raise Refused(499, "the client has gone") from None
    return parse_json(read, "the body")


async def _while_connected(request: Request, waiting: asyncio.Future[Any]) -> Any:
    """The result of what is waited for, which is given up when the client has gone."""
    try:
        while not (await asyncio.wait([waiting], timeout=WATCH))[0]:
            if await request.is_disconnected():
                raise Refused(499, "the client has gone")
        return waiting.result()
    finally:
        waiting.cancel()


def _cancel(worker: Worker, everything: Sequence[Asked]) -> None:
    for one in everything:
        if not one.answer.done() or one.answer.cancelled():
            worker.cancel(one)


async def _chunks(
    answers: Answers, generated: Sequence[Asked], worker: Worker
) -> AsyncGenerator[dict[str, Any]]:
    """The pieces of a stream, as the candidates of all contexts grow."""
    streams = [_follow(answers, asked, number * answers.ask.n) for number, asked in enumerate(generated)]
    pending = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                stream = pending.pop(task)
                try:
                    yield task.result()
                except StopAsyncIteration:
                    continue
                pending[asyncio.ensure_future(anext(stream))] = stream
        if answers.ask.usage_in_stream:
            yield answers.usage_chunk([one.answer.result() for one in generated])
    finally:
        for task in pending:
            task.cancel()
        _cancel(worker, generated)


async def _follow(answers: Answers, asked: Asked, first: int) -> AsyncIterator[dict[str, Any]]:
    """The pieces of one context's candidates, token by token; the first of them is choice number `first`."""
    candidates = [answers.candidate() for _ in range(answers.ask.n)]
    while (news := await asked.news.get()) is not None:
        place, written = news
        candidate = candidates[place]
        if isinstance(written, Generation):
            yield answers.part(first + place, candidate.end(written), candidate)
            yield answers.end(first + place, written)
        elif settled := candidate.add(written):
            yield answers.part(first + place, settled, candidate)
    await asked.answer  # raises why there is none


async def _events(first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events. An error in the middle is an event too."""
    try:
        yield f"data: {json.dumps(first)}\n\n"
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield f"data: {json.dumps(_error(str(error), 'server_error'))}\n\n"
    finally:
        await chunks.aclose()


def _error(message: str, kind: str, parameter: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


async def _refusal(_: Request, error: Exception) -> Response:
    """OpenAI's shape of an error: a Refused, a route that is not there, or a failure."""
    match error:
        case Refused():
            status = error.status
            parameter = error.parameter
            code = error.code
            message = error.message
        case HTTPException():
            status = error.status_code
            parameter = None
            code = None
            message = error.detail
        case _:
            status = 500
            parameter = None
            code = None
            message = "the engine failed"
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    headers = error.headers if isinstance(error, HTTPException) else None  # `Allow`, for one
    return JSONResponse(_error(message, kind, parameter, code), status, headers)
