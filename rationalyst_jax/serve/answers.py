"""What an answer's JSON looks like: OpenAI's shapes, with vLLM's `stop_reason`."""

import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.engine.requests import Generation, Handle, Likeliest, TokenUsage
from rationalyst_jax.serve.protocol import Ask

Row = dict[str, Any]


class Answers:
    """Of one request. Times and names are those of its beginning."""

    def __init__(self, ask: Ask, tokenizer: PreTrainedTokenizerBase, model: str, number: int):
        self.ask, self._tokenizer = ask, tokenizer
        chat = ask.kind == "chat"
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{number}", "created": int(time.time())}
        self._head["model"] = model
        self._object = "chat.completion" if chat else "text_completion"

    def whole(self, generated: Sequence[Handle], scored: Sequence[Handle | None]) -> Row:
        """The answer of a request that is not streamed."""
        choices = []
        for number, context in enumerate(self.ask.contexts):
            score = scored[number]
            texts: Sequence[Generation | None] = (
                generated[number].result if generated else [None] * self.ask.n
            )
            for generation in texts:
                choices.append(self._choice(len(choices), context, generation, score))
        handles = [*generated, *(handle for handle in scored if handle is not None)]
        return self._head | {"object": self._object, "choices": choices, "usage": self.usage(handles)}

    def usage(self, handles: Sequence[Handle]) -> Row:
        """Tokens of the contexts, each counted once, and generated; cached: not computed for any request."""
        used = [handle.usage for handle in handles]
        prompt, written = sum(map(len, self.ask.contexts)), sum(one.generated for one in used)
        computed = sum(_computed(one) for one in used)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": max(0, prompt - computed)},
        }

    def part(self, index: int, text: str, tokens: Sequence[tuple[int, float, Likeliest]], first: bool) -> Row:
        """A piece of a stream: new text of a choice."""
        if self.ask.kind == "chat":
            said = {"role": "assistant", "content": text} if first else {"content": text}
            choice: Row = {"index": index, "delta": said, "finish_reason": None}
            choice["logprobs"] = self._chat_logprobs(tokens) if self.ask.logprobs is not None else None
        else:
            choice = {"index": index, "text": text, "finish_reason": None}
            choice["logprobs"] = self._logprobs(tokens) if self.ask.logprobs is not None else None
        return self._chunk([choice])

    def end(self, index: int, generation: Generation) -> Row:
        """The last piece of a choice."""
        choice: Row = {"index": index, **self._finish(generation), "logprobs": None}
        return self._chunk([choice | ({"delta": {}} if self.ask.kind == "chat" else {"text": ""})])

    def usage_chunk(self, handles: Sequence[Handle]) -> Row:
        return self._chunk([]) | {"usage": self.usage(handles)}

    def _chunk(self, choices: list[Row]) -> Row:
        name = "chat.completion.chunk" if self.ask.kind == "chat" else self._object
        return self._head | {"object": name, "choices": choices}

    def _choice(
        self, index: int, context: tuple[int, ...], generation: Generation | None, score: Handle | None
    ) -> Row:
        text = generation.text if generation else ""
        finish = self._finish(generation) if generation else {"finish_reason": "length", "stop_reason": None}
        tokens = triples(generation) if generation else []
        if self.ask.kind == "chat":
            said: Row = {"role": "assistant", "content": text, "refusal": None}
            logprobs = self._chat_logprobs(tokens) if self.ask.logprobs is not None else None
            return {"index": index, "message": said, "logprobs": logprobs, **finish}
        if self.ask.echo:
            text = self._decode(context) + text
        logprobs = None
        if self.ask.logprobs is not None:
            before: list[tuple[int, float | None, Likeliest]] = []
            if self.ask.echo:
                values = score.result.tolist() if score else []
                likeliest = score.likeliest if score and score.likeliest else [()] * len(values)
                before = [(context[0], None, ()), *zip(context[1:], values, likeliest, strict=True)]
            logprobs = self._logprobs([*before, *tokens])
        return {"index": index, "text": text, "logprobs": logprobs, **finish}

    def _finish(self, generation: Generation) -> Row:
        """Why it ended; `stop_reason` is the stop string, or the token among the request's `stop_ids`."""
        reason: str | int | None = None
        if generation.finish == "stop":
            reason = generation.stop
        elif generation.finish == "end" and generation.tokens[-1] in self.ask.generate[0].stop_ids:
            reason = generation.tokens[-1]
        return {"finish_reason": "length" if generation.finish == "length" else "stop", "stop_reason": reason}

    def _logprobs(self, tokens: Sequence[tuple[int, float | None, Likeliest]]) -> Row:
        """The completions route's columns. The chosen token is always among the likeliest."""
        names = "tokens", "token_logprobs", "top_logprobs", "text_offset"
        columns: dict[str, list[Any]] = {name: [] for name in names}
        offset = 0
        for token, logprob, likeliest in tokens:
            piece = self._decode([token])
            top = None if logprob is None else {self._decode([other]): value for other, value in likeliest}
            columns["tokens"].append(piece)
            columns["token_logprobs"].append(logprob)
            columns["top_logprobs"].append(top if top is None else {piece: logprob} | top)
            columns["text_offset"].append(offset)
            offset += len(piece)
        return columns

    def _chat_logprobs(self, tokens: Sequence[tuple[int, float, Likeliest]]) -> Row:
        content = []
        for token, logprob, likeliest in tokens:
            top = [self._token(other, value) for other, value in likeliest]
            content.append(self._token(token, logprob) | {"top_logprobs": top})
        return {"content": content}

    def _token(self, token: int, logprob: float) -> Row:
        piece = self._decode([token])
        return {"token": piece, "logprob": logprob, "bytes": list(piece.encode())}

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def triples(generation: Generation) -> list[tuple[int, float, Likeliest]]:
    """Token, log-probability and alternatives of each place of a generation."""
    likeliest = generation.likeliest or ((),) * len(generation.tokens)
    return list(zip(generation.tokens, generation.logprobs.tolist(), likeliest, strict=True))


def _computed(used: TokenUsage) -> int:
    """Context tokens that were computed: what a score request scores is context to whoever asked."""
    return used.prefilled + max(0, used.scored - 1)
