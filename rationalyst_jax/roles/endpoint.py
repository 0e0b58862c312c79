"""A model behind an OpenAI-compatible endpoint: asked through the `openai` client, by token ids or as a chat.

With a tokenizer (`Role`) the endpoint is sent the ids that our own engine would get, through its completions
route, which vLLM and `rationalyst serve` take; without one (`ChatRole`) it is sent the prompt's messages.
"""

import asyncio
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai

from rationalyst_jax.lm.engine.requests import GenerateRequest, Generation, Handle, ScoreRequest, TokenUsage
from rationalyst_jax.prompts.prompt import Field, Prompt, messages
from rationalyst_jax.roles.config import EndpointConfig
from rationalyst_jax.roles.role import NotAnswered, Role, Sampling

BYTES_PER_TOKEN = 3
MOMENT = 0.001  # seconds that a step waits for an answer
PAUSE = 1.0  # seconds after an answer that is none


@dataclass(frozen=True)
class ChatRequest:
    """Messages `(role, content)` and how to go on; the last one is the assistant's where it is unfinished."""

    messages: tuple[tuple[str, str], ...]
    how: Sampling


@dataclass(frozen=True)
class ChatRole(Role):
    """A model in a part, asked by messages."""

    tokenizer: Any = None

    def count_tokens(self, text: str) -> int:
        """A guess, for nobody has the tokenizer: three bytes a token, which few texts exceed."""
        return -(-len(text.encode()) // BYTES_PER_TOKEN)

    def has_room(self, request: ChatRequest, tokens: int) -> bool:
        """The endpoint itself refuses what is too long."""
        return True

    def to_generate(self, prompt: Prompt, fields: Mapping[str, Field], how: Sampling) -> ChatRequest:
        return ChatRequest(messages(prompt, fields), how)

    @property
    def can_score(self) -> bool:
        """A chat gives no log-probabilities of a given text."""
        return False


class Endpoint:
    """Answers requests in an event loop of its own. `usage` of a handle is what the server counted.

    The client tries again what the server refuses for a while or does not answer, and waits as long as the
    server asks.
    """

    repeatable = False
    positions = None

    def __init__(self, base_url: str, config: EndpointConfig):
        self.config = config
        key = os.environ.get("OPENAI_API_KEY", "none")  # servers that ask for none take any
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=key, timeout=config.timeout, max_retries=config.retries
        )
        self._places = asyncio.Semaphore(config.concurrency)
        self._asked: dict[Future[tuple[Any, TokenUsage]], Handle] = {}
        self.tokens = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return bool(self._asked)

    def submit(self, request: GenerateRequest | ScoreRequest | ChatRequest) -> Handle:
        """Raises ValueError where words are to be suppressed and the endpoint cannot be told so."""
        if isinstance(request, ScoreRequest) and request.suppress:
            raise ValueError("an endpoint cannot leave out suppressed words from scores")
        if isinstance(request, ChatRequest) and request.how.suppress:
            raise ValueError("a chat cannot leave out suppressed words: give the endpoint's tokenizer")
        handle = Handle(request)
        self._asked[asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)] = handle
        return handle

    def step(self) -> list[Handle]:
        """Those answered by now; waits a moment for one."""
        done, _ = wait(self._asked, MOMENT, FIRST_COMPLETED)
        handles = []
        for future in sorted(done, key=list(self._asked).index):
            handle = self._asked.pop(future)
            handle.done = True
            try:
                handle.result, handle.usage = future.result()
                self.tokens += handle.usage.prefilled + handle.usage.scored + handle.usage.generated
            except NotAnswered as error:
                handle.error = error
            handles.append(handle)
        return handles

    def cancel(self, handle: Handle) -> None:
        """Also a request that is on its way or waits for its next try."""
        for future in [future for future, asked in self._asked.items() if asked is handle]:
            future.cancel()
            del self._asked[future]

    def forget(self) -> None:
        """Nothing is kept here."""

    def flops(self, handle: Handle) -> int:
        return 0

    def close(self) -> None:
        """Waits for no answer any more, and for no next try."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- In the loop ----

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    async def _answer(self, request: Any) -> tuple[Any, TokenUsage]:
        """The result of a request and what it took.

        An answer that is none, which the client takes for one, is asked for again as often as the config
        says. Raises NotAnswered.
        """
        ask = {GenerateRequest: self._generate, ScoreRequest: self._score, ChatRequest: self._chat}
        tries = self.config.retries + 1
        problem = ""
        async with self._places:
            for number in range(tries):
                if number:
                    await asyncio.sleep(PAUSE)
                try:
                    return await ask[type(request)](request)
                except (openai.APIResponseValidationError, _Broken) as error:
                    problem = str(error)
                except json.JSONDecodeError as error:
                    problem = f"not JSON: {error}"
                except openai.APIStatusError as error:
                    said = " ".join(error.message.split())
                    problem = f"status {error.status_code}: {said:.200}"
                    raise NotAnswered(f"{self.config.model}: {problem}") from error
                except openai.APIConnectionError as error:
                    raise NotAnswered(f"{self.config.model}: no answer in {tries} tries: {error}") from error
        raise NotAnswered(f"{self.config.model}: no answer in {tries} tries; the last: {problem}")

    async def _generate(self, request: GenerateRequest) -> tuple[list[Generation], TokenUsage]:
        extra = {"top_k": request.top_k or None, "stop_token_ids": list(request.stop_ids) or None}
        extra["skip_special_tokens"] = False  # as our own engine answers
        response = await self._client.completions.create(
            model=self.config.model,
            prompt=list(request.context),
            **_sampling(request),
            logprobs=1,
            logit_bias={str(token): -100 for token in request.suppress},
            extra_body={name: value for name, value in extra.items() if value is not None},
        )
        with _reading():
            choices = _in_order(response, request.n)
            return [_generation(c, c.text, request.stop) for c in choices], _usage(response)

    async def _score(self, request: ScoreRequest) -> tuple[np.ndarray, TokenUsage]:
        response = await self._client.completions.create(
            model=self.config.model,
            prompt=[*request.context, *request.continuation],
            max_tokens=0,
            echo=True,
            logprobs=1,
            temperature=0,
        )
        with _reading():
            [choice] = _in_order(response, 1)
            values = np.array(choice.logprobs.token_logprobs[len(request.context) :], np.float32)
            if len(values) != len(request.continuation):
                raise _Broken(f"{len(values)} log-probabilities for {len(request.continuation)} tokens")
            used = _usage(response)
            return values, TokenUsage(0, used.prefilled - len(values), used.cached, len(values))

    async def _chat(self, request: ChatRequest) -> tuple[list[Generation], TokenUsage]:
        how = request.how
        said = [{"role": role, "content": text} for role, text in request.messages]
        extra: dict[str, Any] = {}
        if said[-1]["role"] == "assistant" and self.config.continues:
            extra = {"continue_final_message": True, "add_generation_prompt": False}
        elif said[-1]["role"] == "assistant":
            said.append({"role": "user", "content": "Go on with the next step alone."})
        response = await self._client.chat.completions.create(  # pyright: ignore[reportCallIssue]
            model=self.config.model,
            messages=said,  # pyright: ignore[reportArgumentType]
            **_sampling(how),
            logprobs=True,
            extra_body=extra,
        )
        with _reading():
            choices = _in_order(response, how.n)
            return [_generation(c, c.message.content or "", how.stop) for c in choices], _usage(response)


def _sampling(how: GenerateRequest | Sampling) -> dict[str, Any]:
    """The parameters that both routes have."""
    same = {name: getattr(how, name) for name in ("n", "max_tokens", "temperature", "top_p", "seed")}
    return {**same, "stop": list(how.stop) or None}


class _Broken(Exception):
    """An answer that lacks what was asked for."""


@contextmanager
def _reading() -> Iterator[None]:
    """Turns what goes wrong with a strange answer into _Broken."""
    try:
        yield
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise _Broken(f"a broken answer ({error})") from error


def _in_order(response: Any, n: int) -> list[Any]:
    choices = sorted(response.choices, key=lambda choice: choice.index)
    if len(choices) != n:
        raise _Broken(f"{len(choices)} choices instead of {n}")
    return choices


def _generation(choice: Any, text: str, stop: Sequence[str]) -> Generation:
    """A choice, whose token ids nobody says: they are -1.

    A server that does not tell a stop string from the end of a turn (`stop_reason`) is taken to have met the
    string: then the next step will be empty.
    """
    if hasattr(choice.logprobs, "content"):
        logprobs = [token.logprob for token in choice.logprobs.content or ()]
    else:
        logprobs = choice.logprobs.token_logprobs if choice.logprobs else ()
    values = np.array(logprobs, np.float32)
    tokens = (-1,) * (len(values) or int(bool(text)))
    if choice.finish_reason == "length":
        return Generation(tokens, values, text, "length")
    extra = getattr(choice, "model_extra", None) or {}
    found = extra.get("stop_reason", stop[0] if stop else None)
    if isinstance(found, str) and found in stop:
        return Generation(tokens, values, text, "stop", found)
    return Generation(tokens, values, text, "end")


def _usage(response: Any) -> TokenUsage:
    """What the server counted: tokens of the prompts, of these from its cache, and generated."""
    if response.usage is None:
        return TokenUsage()
    details = response.usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    return TokenUsage(response.usage.completion_tokens, response.usage.prompt_tokens - cached, cached)
