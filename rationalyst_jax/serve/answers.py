"""What an answer's JSON looks like: OpenAI's shapes, with vLLM's `stop_reason`."""

import time
from collections.abc import Sequence
from typing import Any

from rationalyst_jax.lm.engine.requests import Generation, Handle, Likeliest, TokenUsage
from rationalyst_jax.serve.pieces import Candidate, Token, Vocabulary, prompt_pieces
from rationalyst_jax.serve.protocol import Ask

Row = dict[str, Any]


class Answers:
    """Of one request. Times and names are those of its beginning."""

    def __init__(self, ask: Ask, vocabulary: Vocabulary, model: str, number: int):
        self.ask = ask
        self._vocabulary = vocabulary
        chat = ask.kind == "chat"
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{number}", "created": int(time.time())}
        self._head["model"] = model
        self._object = "chat.completion" if chat else "text_completion"

    def whole(self, generated: Sequence[Handle], scored: Sequence[Handle | None]) -> Row:
        """The answer of a request that is not streamed."""
        choices = []
        for place, score in enumerate(scored):
            texts: Sequence[Generation | None] = generated[place].result if generated else [None] * self.ask.n
            for generation in texts:
                choices.append(self._choice(len(choices), place, generation, score))
        handles = [*generated, *(handle for handle in scored if handle is not None)]
        return self._head | {"object": self._object, "choices": choices, "usage": self.usage(handles)}

    def usage(self, handles: Sequence[Handle]) -> Row:
        """Tokens of the contexts, each counted once, and generated; cached: not computed for any request."""
        used = [handle.usage for handle in handles]
        prompt = sum(map(len, self.ask.contexts))
        written = sum(one.generated for one in used)
        computed = sum(_computed(one) for one in used)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": max(0, prompt - computed)},
        }

    def candidate(self) -> Candidate:
        """A candidate that has no tokens yet."""
        stop = self.ask.generate[0].stop
        return Candidate(self._vocabulary, stop, self.ask.skip_special)

    def part(self, index: int, tokens: Sequence[Token], candidate: Candidate) -> Row:
        """A piece of a stream: the tokens of a choice that its `candidate` gave last."""
        text = "".join(token.text for token in tokens)
        first = candidate.given == len(tokens)
        wanted = self.ask.logprobs is not None
        if self.ask.kind == "chat":
            said = {"role": "assistant", "content": text} if first else {"content": text}
            choice: Row = {"index": index, "delta": said, "finish_reason": None}
            choice["logprobs"] = self._chat_logprobs(tokens) if wanted else None
        else:
            choice = {"index": index, "text": text, "finish_reason": None}
            before = candidate.length - len(text)
            choice["logprobs"] = self._logprobs(tokens, before) if wanted else None
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

    def _choice(self, index: int, place: int, generation: Generation | None, score: Handle | None) -> Row:
        """A candidate of the prompt at that place, after the prompt itself where it is to be echoed."""
        finish = self._finish(generation) if generation else {"finish_reason": "length", "stop_reason": None}
        tokens = self.candidate().end(generation) if generation else []
        if self.ask.echo:
            tokens = [*self._prompt(place, score), *tokens]
        text = "".join(token.text for token in tokens)
        wanted = self.ask.logprobs is not None
        if self.ask.kind == "chat":
            said: Row = {"role": "assistant", "content": text, "refusal": None}
            logprobs = self._chat_logprobs(tokens) if wanted else None
            return {"index": index, "message": said, "logprobs": logprobs, **finish}
        logprobs = self._logprobs(tokens, 0) if wanted else None
        return {"index": index, "text": text, "logprobs": logprobs, **finish}

    def _prompt(self, place: int, score: Handle | None) -> list[Token]:
        """The tokens of a prompt, with their log-probabilities where these are wanted."""
        context = self.ask.contexts[place]
        given = self.ask.texts[place]
        pieces = prompt_pieces(self._vocabulary, context, given, self.ask.skip_special)
        values = [None] * len(context)
        likeliest: Sequence[Likeliest] = [()] * len(context)
        if score is not None:
            values[1:] = score.result.tolist()
            likeliest = [(), *score.likeliest] if score.likeliest else likeliest
        return [Token(*columns) for columns in zip(context, pieces, values, likeliest, strict=True)]

    def _finish(self, generation: Generation) -> Row:
        """Why it ended; `stop_reason` is the stop string, or the token among the request's `stop_ids`."""
        reason: str | int | None = None
        if generation.finish == "stop":
            reason = generation.stop
        elif generation.finish == "end" and generation.tokens[-1] in self.ask.generate[0].stop_ids:
            reason = generation.tokens[-1]
        return {"finish_reason": "length" if generation.finish == "length" else "stop", "stop_reason": reason}

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> Row:
        """The completions route's columns, of a text that begins at `offset`.

        The chosen token is always among the likeliest.
        """
        names = "tokens", "token_logprobs", "top_logprobs", "text_offset"
        columns: dict[str, list[Any]] = {name: [] for name in names}
        name = self._vocabulary.names
        for token in tokens:
            top = {name[other]: value for other, value in ((token.id, token.logprob), *token.likeliest)}
            columns["tokens"].append(name[token.id])
            columns["token_logprobs"].append(token.logprob)
            columns["top_logprobs"].append(None if token.logprob is None else top)
            columns["text_offset"].append(offset)
            offset += len(token.text)
        return columns

    def _chat_logprobs(self, tokens: Sequence[Token]) -> Row:
        content = []
        for token in tokens:
            top = [self._named(other, value) for other, value in token.likeliest]
            content.append(self._named(token.id, token.logprob) | {"top_logprobs": top})
        return {"content": content}

    def _named(self, token: int, logprob: float | None) -> Row:
        spelled = self._vocabulary.bytes[token]
        return {"token": self._vocabulary.names[token], "logprob": logprob, "bytes": list(spelled)}


def _computed(used: TokenUsage) -> int:
    """Context tokens that were computed: what a score request scores is context to whoever asked."""
    return used.prefilled + max(0, used.scored - 1)
