"""What a request's JSON means. Every parameter is either honoured or refused by name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.engine.requests import GenerateRequest, ScoreRequest
from rationalyst_jax.serve.messages import read_messages, render_messages
from rationalyst_jax.serve.reader import Reader, Refused

MOST_ALTERNATIVES = 20  # the most OpenAI's chat route gives
MOST_STOPS = 16
MOST_CHOICES = 128
# Parameters that change nothing here with these values, and are refused with others.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "suffix": ("",),
    "best_of": (1,),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
}
_IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # say nothing about the answer


@dataclass(frozen=True)
class Served:
    """The model behind the routes: how long a sequence may be, and how many tokens it knows."""

    tokenizer: PreTrainedTokenizerBase
    positions: int
    vocabulary: int


@dataclass(frozen=True)
class Ask:
    """A parsed request: contexts (token ids) to generate `n` candidates after each, and how to answer.

    texts: what each context was given as, None where token ids were. logprobs: how many alternatives are
    shown with each token; None: no log-probabilities. echo: the context is part of the answer. skip_special:
    special tokens are no part of its text. generate: one request a context, none where only log-probabilities
    of the context are wanted (`max_tokens` 0).
    """

    kind: Literal["completion", "chat"]
    contexts: tuple[tuple[int, ...], ...]
    texts: tuple[str | None, ...]
    n: int
    generate: tuple[GenerateRequest, ...]
    logprobs: int | None
    echo: bool
    skip_special: bool
    stream: bool
    usage_in_stream: bool

    @property
    def score(self) -> list[ScoreRequest | None]:
        """What gives the log-probabilities of each context, where they are wanted (a single token has
        none)."""
        wanted = self.echo and self.logprobs is not None
        return [
            ScoreRequest(c[:1], c[1:], alternatives=self.logprobs or 0) if wanted and len(c) > 1 else None
            for c in self.contexts
        ]


def read_completion(body: Any, served: Served, seed: int) -> Ask:
    """The request of a `/v1/completions` body, whose noise is that of `seed` where it names none."""
    reader = Reader(body)
    reader.take("model", str, "")
    prompt = reader.take("prompt", (str, list), None)
    if prompt is None:
        raise Refused(400, "prompt is missing", "prompt")
    special = reader.take("add_special_tokens", bool, True)
    prompts = _prompts(prompt)
    contexts = tuple(_ids(one, served, special) for one in prompts)
    texts = tuple(one if isinstance(one, str) else None for one in prompts)
    echo = reader.take("echo", bool, False)
    logprobs = reader.number("logprobs", None, 0, MOST_ALTERNATIVES)
    most = reader.number("max_tokens", 16, 0, served.positions)
    if not most and not echo:
        raise Refused(400, "max_tokens must be at least 1 without echo", "max_tokens")
    return _ask(reader, "completion", contexts, texts, most, logprobs, echo, served, seed)


def read_chat(body: Any, served: Served, seed: int) -> Ask:
    """The request of a `/v1/chat/completions` body, whose noise is that of `seed` where it names none."""
    reader = Reader(body)
    reader.take("model", str, "")
    messages = read_messages(reader.take("messages", list, []))
    continues = reader.take("continue_final_message", bool, False)
    opens = reader.take("add_generation_prompt", bool, not continues)
    if continues and opens:
        raise Refused(400, "continue_final_message excludes add_generation_prompt", "add_generation_prompt")
    text = render_messages(served.tokenizer, messages, opens, continues)
    context = _ids(text, served, False)
    wanted = reader.take("logprobs", bool, False)
    shown = reader.number("top_logprobs", 0, 0, MOST_ALTERNATIVES)
    if shown and not wanted:
        raise Refused(400, "top_logprobs needs logprobs", "top_logprobs")
    room = max(1, served.positions - len(context))
    most = reader.number("max_tokens", None, 1, served.positions)
    most = reader.number("max_completion_tokens", most, 1, served.positions) or room
    logprobs = shown if wanted else None
    return _ask(reader, "chat", (context,), (text,), most, logprobs, False, served, seed)


def _ask(
    reader: Reader,
    kind: Literal["completion", "chat"],
    contexts: tuple[tuple[int, ...], ...],
    texts: tuple[str | None, ...],
    most: int,
    logprobs: int | None,
    echo: bool,
    served: Served,
    seed: int,
) -> Ask:
    """What both routes have in common."""
    n = reader.number("n", 1, 1, MOST_CHOICES)
    stop = reader.take("stop", (str, list), [])
    stop = [stop] if isinstance(stop, str) else stop
    if len(stop) > MOST_STOPS or not all(isinstance(one, str) and one for one in stop):
        raise Refused(400, f"stop must be at most {MOST_STOPS} strings, none empty", "stop")
    seed = reader.take("seed", int, seed) % 2**32
    temperature = float(reader.number("temperature", 1.0, 0, 100, (int, float)))
    top_p = float(reader.number("top_p", 1.0, 1e-9, 1, (int, float)))
    top_k = max(0, reader.number("top_k", 0, -1, served.vocabulary))
    stop_ids = _token_ids("stop_token_ids", reader.take("stop_token_ids", list, []), served.vocabulary)
    suppress = _suppressed(reader.take("logit_bias", dict, {}), served.vocabulary)
    skip_special = reader.take("skip_special_tokens", bool, True)
    stream = reader.take("stream", bool, False)
    options = Reader(reader.take("stream_options", dict, {}), "stream_options")
    usage_in_stream = options.take("include_usage", bool, False)
    options.done()
    reader.done(_NEUTRAL, _IGNORED)
    if stream and echo:
        raise Refused(400, "echo cannot be streamed", "stream")
    for context in contexts:
        if len(context) + most > served.positions:
            tokens = f"{len(context)} tokens and max_tokens {most}"
            raise Refused(
                400,
                f"{tokens} exceed the model's {served.positions} positions",
                "messages" if kind == "chat" else "prompt",
                "context_length_exceeded",
            )
    generate = tuple(
        GenerateRequest(
            context,
            most,
            n,
            temperature,
            top_p,
            top_k,
            tuple(stop),
            stop_ids,
            (seed + number) % 2**32,
            suppress,
            logprobs or 0,
        )
        for number, context in enumerate(contexts)
        if most
    )
    return Ask(kind, contexts, texts, n, generate, logprobs, echo, skip_special, stream, usage_in_stream)


def _prompts(prompt: str | list) -> list[Any]:
    """A text, or ids, or a list of either."""
    if isinstance(prompt, str) or (prompt and all(type(token) is int for token in prompt)):
        return [prompt]
    if not prompt or not all(isinstance(one, (str, list)) for one in prompt):
        raise Refused(400, "prompt must be text, token ids, or a list of one of them, not empty", "prompt")
    return prompt


def _ids(prompt: str | Sequence[Any], served: Served, special: bool) -> tuple[int, ...]:
    """Token ids of a prompt. A text that begins with BOS itself gets no second one."""
    if isinstance(prompt, str):
        encoded = served.tokenizer(prompt, add_special_tokens=special, return_special_tokens_mask=True)
        ids = tuple(cast(list[int], encoded["input_ids"]))
        added = cast(list[int], encoded["special_tokens_mask"])
        if added and added[0] and ids[:2] == (served.tokenizer.bos_token_id,) * 2:
            ids = ids[1:]
    else:
        ids = _token_ids("prompt", prompt, served.vocabulary)
    if not ids:
        raise Refused(400, "prompt is empty", "prompt")
    return ids


def _token_ids(key: str, ids: Sequence[Any], vocabulary: int) -> tuple[int, ...]:
    for token in ids:
        if type(token) is not int or not 0 <= token < vocabulary:
            raise Refused(400, f"{key}: {token!r:.60} is no token id below {vocabulary}", key)
    return tuple(ids)


def _suppressed(bias: Mapping[str, Any], vocabulary: int) -> tuple[int, ...]:
    """Tokens that must not be sampled: a bias of -100, the only one there is here."""
    for token, value in bias.items():
        if not re.fullmatch("[0-9]{1,9}", token) or value != -100:
            message = f"logit_bias: {token!r:.60}: {value!r:.60}; only token ids and -100 are supported"
            raise Refused(400, message, "logit_bias")
    tokens = _token_ids("logit_bias", [int(token) for token in bias], vocabulary)
    if len(set(tokens)) == vocabulary:
        raise Refused(400, "logit_bias: leaves no token to be written", "logit_bias")
    return tokens
