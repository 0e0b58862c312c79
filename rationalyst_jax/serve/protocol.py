"""What a request's JSON means. Every parameter is either honoured or refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import jinja2
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.engine.requests import GenerateRequest, ScoreRequest

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
    "skip_special_tokens": (True,),
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


class Refused(Exception):
    """A request that is not served: its HTTP status, and what was wrong with which parameter."""

    def __init__(self, status: int, message: str, parameter: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.parameter, self.code = status, message, parameter, code


@dataclass(frozen=True)
class Ask:
    """A parsed request: contexts (token ids) to generate `n` candidates after each, and how to answer.

    logprobs: how many alternatives are shown with each token; None: no log-probabilities. echo: the
    context is
    part of the answer. generate: one request a context, none where only log-probabilities of the context are
    wanted (`max_tokens` 0).
    """

    kind: Literal["completion", "chat"]
    contexts: tuple[tuple[int, ...], ...]
    n: int
    generate: tuple[GenerateRequest, ...]
    logprobs: int | None
    echo: bool
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


class Reader:
    """The values of a JSON object, checked as they are taken."""

    def __init__(self, body: Any):
        if not isinstance(body, dict):
            raise Refused(400, "the body must be a JSON object")
        self._left = {key: value for key, value in body.items() if value is not None}

    def take(self, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = self._left.pop(key, default)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if value is not default and wrong:
            wanted = " or ".join(k.__name__ for k in kinds)
            raise Refused(400, f"{key} must be {wanted}, got {value!r:.60}", key)
        return value

    def number(self, key: str, default: Any, low: float, high: float, kind: Any = int) -> Any:
        """An integer, or another kind of number, in that range; the default may be None."""
        value = self.take(key, kind, default)
        if value is not None and not low <= value <= high:
            raise Refused(400, f"{key} must be between {low} and {high}, got {value}", key)
        return value

    def done(self) -> None:
        """Refuses what nobody took."""
        for key, value in self._left.items():
            if key not in _IGNORED and value not in _NEUTRAL.get(key, ()):
                known = key in _NEUTRAL
                message = f"{key}={value!r:.60} is not supported" if known else f"unknown parameter {key!r}"
                raise Refused(400, message, key)


def read_completion(body: Any, tokenizer: PreTrainedTokenizerBase, positions: int, vocabulary: int) -> Ask:
    """The request of a `/v1/completions` body."""
    reader = Reader(body)
    reader.take("model", str, "")
    prompt = reader.take("prompt", (str, list), None)
    if prompt is None:
        raise Refused(400, "prompt is missing", "prompt")
    special = reader.take("add_special_tokens", bool, True)
    contexts = tuple(_ids(one, tokenizer, special, vocabulary) for one in _prompts(prompt))
    echo = reader.take("echo", bool, False)
    logprobs = reader.number("logprobs", None, 0, MOST_ALTERNATIVES)
    most = reader.number("max_tokens", 16, 0, positions)
    if not most and not echo:
        raise Refused(400, "max_tokens must be at least 1 without echo", "max_tokens")
    return _ask(reader, "completion", contexts, most, logprobs, echo, positions, vocabulary)


def read_chat(body: Any, tokenizer: PreTrainedTokenizerBase, positions: int, vocabulary: int) -> Ask:
    """The request of a `/v1/chat/completions` body."""
    reader = Reader(body)
    reader.take("model", str, "")
    messages = [_message(i, message) for i, message in enumerate(reader.take("messages", list, []))]
    if not messages:
        raise Refused(400, "messages must not be empty", "messages")
    continues = reader.take("continue_final_message", bool, False)
    opens = reader.take("add_generation_prompt", bool, not continues)
    if continues and opens:
        raise Refused(400, "continue_final_message excludes add_generation_prompt", "add_generation_prompt")
    if not tokenizer.chat_template:
        raise Refused(400, "the model's tokenizer has no chat template", "messages")
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opens, continue_final_message=continues
        )
    except (jinja2.TemplateError, ValueError) as error:
        raise Refused(400, f"the chat template refuses the messages: {error}", "messages") from error
    context = _ids(str(text), tokenizer, False, vocabulary)
    wanted = reader.take("logprobs", bool, False)
    shown = reader.number("top_logprobs", 0, 0, MOST_ALTERNATIVES)
    if shown and not wanted:
        raise Refused(400, "top_logprobs needs logprobs", "top_logprobs")
    room = max(1, positions - len(context))
    most = reader.number("max_tokens", None, 1, positions)
    most = reader.number("max_completion_tokens", most, 1, positions) or room
    logprobs = shown if wanted else None
    return _ask(reader, "chat", (context,), most, logprobs, False, positions, vocabulary)


def _ask(
    reader: Reader,
    kind: Literal["completion", "chat"],
    contexts: tuple[tuple[int, ...], ...],
    most: int,
    logprobs: int | None,
    echo: bool,
    positions: int,
    vocabulary: int,
) -> Ask:
    """What both routes have in common."""
    n = reader.number("n", 1, 1, MOST_CHOICES)
    stop = reader.take("stop", (str, list), [])
    stop = [stop] if isinstance(stop, str) else stop
    if len(stop) > MOST_STOPS or not all(isinstance(one, str) and one for one in stop):
        raise Refused(400, f"stop must be at most {MOST_STOPS} strings, none empty", "stop")
    seed = reader.take("seed", int, 0) % 2**32
    temperature = float(reader.number("temperature", 1.0, 0, 100, (int, float)))
    top_p = float(reader.number("top_p", 1.0, 1e-9, 1, (int, float)))
    top_k = max(0, reader.number("top_k", 0, -1, vocabulary))
    stop_ids = _token_ids("stop_token_ids", reader.take("stop_token_ids", list, []), vocabulary)
    suppress = _suppressed(reader.take("logit_bias", dict, {}), vocabulary)
    stream = reader.take("stream", bool, False)
    options = Reader(reader.take("stream_options", dict, {}))
    usage_in_stream = options.take("include_usage", bool, False)
    options.done()
    reader.done()
    if stream and echo:
        raise Refused(400, "echo cannot be streamed", "stream")
    for context in contexts:
        if len(context) + most > positions:
            raise Refused(
                400,
                f"{len(context)} tokens and max_tokens {most} exceed the model's {positions} positions",
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
    return Ask(kind, contexts, n, generate, logprobs, echo, stream, usage_in_stream)


def _prompts(prompt: str | list) -> list[Any]:
    """A text, or ids, or a list of either."""
    if isinstance(prompt, str) or (prompt and all(type(token) is int for token in prompt)):
        return [prompt]
    if not prompt or not all(isinstance(one, (str, list)) for one in prompt):
        raise Refused(400, "prompt must be text, token ids, or a list of one of them, not empty", "prompt")
    return prompt


def _ids(
    prompt: str | Sequence[Any], tokenizer: PreTrainedTokenizerBase, special: bool, vocabulary: int
) -> tuple[int, ...]:
    if isinstance(prompt, str):
        ids = tuple(cast(list[int], tokenizer(prompt, add_special_tokens=special)["input_ids"]))
    else:
        ids = _token_ids("prompt", prompt, vocabulary)
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
        if not token.isdecimal() or value != -100:
            raise Refused(400, f"logit_bias: {token}: {value!r:.60}; only -100 is supported", "logit_bias")
    tokens = _token_ids("logit_bias", [int(token) for token in bias], vocabulary)
    if len(set(tokens)) == vocabulary:
        raise Refused(400, "logit_bias: leaves no token to be written", "logit_bias")
    return tokens


def _message(number: int, message: Any) -> dict[str, str]:
    """A message with its text, which may come in parts."""
    place = f"messages[{number}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refused(400, f"{place} needs a role and a content", "messages")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = None if any(not isinstance(part, str) for part in parts) else "".join(map(str, parts))
    if not isinstance(content, str):
        raise Refused(400, f"{place}: the content must be text", "messages")
    return {"role": message["role"], "content": content}
