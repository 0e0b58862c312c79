"""The generation engine: requests in, sampled continuations or log-probabilities out.

Requests of a like shape are batched together and padded to one of few shapes, so that few programs are
compiled. A request's shape depends on the request alone and its noise on its own seed, so what it draws does
not depend on its neighbours in the batch (but for float rounding: the rest of a batch is a smaller one).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from rationalyst_jax.lm.decode import Wishes, begin, decode, prefill
from rationalyst_jax.lm.likelihood import Pair, bucket
from rationalyst_jax.lm.likelihood import score as score_groups
from rationalyst_jax.lm.llama import Llama
from rationalyst_jax.lm.sampling import Mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class GenerateRequest:
    """Ask for `n` candidates of at most `max_tokens` tokens after `context` (token ids, BOS included).

    Temperature 0 is greedy. `stop` are strings that end a candidate; `suppress` are token ids that must not
    be sampled. Equal seeds give equal noise at equal positions: give each request its own. Raises ValueError
    for a value out of range.
    """

    context: tuple[int, ...]
    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    suppress: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.context:
            raise ValueError("generate: the context is empty")
        if self.max_tokens < 1:
            raise ValueError(f"generate: max_tokens must be at least 1, got {self.max_tokens}")
        if self.n < 1:
            raise ValueError(f"generate: n must be at least 1, got {self.n}")
        if not self.temperature >= 0:
            raise ValueError(f"generate: temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"generate: top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"generate: seed must be in [0, 2**32), got {self.seed}")
        if "" in self.stop:
            raise ValueError("generate: a stop string is empty")

    @property
    def mode(self) -> Mode:
        if self.temperature == 0:
            return "greedy"
        return "sample" if self.top_p == 1 else "nucleus"


@dataclass(frozen=True)
class Generation:
    """One candidate. `tokens` and `logprobs` include the token that ended it; `text` does not.

    `logprobs` (nats, float32) are the model's own, after `suppress` but before temperature and top-p: a
    score request gives the same numbers. `finish` is "stop" for a stop string, "end" for the model's end of
    sequence (also where a stop string is spelled alike), "length" when the tokens or the positions ran out
    (no token at all, where the context leaves no position free).
    """

    tokens: tuple[int, ...]
    logprobs: np.ndarray
    text: str
    finish: Literal["stop", "end", "length"]


@dataclass(frozen=True)
class ScoreRequest:
    """Ask for the per-token log-probabilities of `continuation` after `context`, without `suppress`ed ids."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    suppress: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.context:
            raise ValueError("score: the context is empty")
        if not self.continuation:
            raise ValueError("score: the continuation is empty")


class Engine:
    """Generates and scores with one model; weights that change later are not seen.

    `batch_size` prompts are generated for at a time, each with its n candidates. Scoring packs token trees
    in rows of `row_length` tokens (more for a longer sequence), `rows_per_batch` rows at a time. Every
    `chunk` tokens the host looks for stop strings that span tokens.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_size: int = 32,
        row_length: int = 256,
        rows_per_batch: int = 16,
        chunk: int = 32,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.row_length = row_length
        self.rows_per_batch = rows_per_batch
        self.chunk = chunk
        self._graph, self._weights = nnx.split(model)
        eos = model.config.eos_token_id
        eos = eos if isinstance(eos, tuple) else (eos,)
        eos = (*eos, cast("int | None", tokenizer.eos_token_id))
        self._eos = {token for token in eos if token is not None}
        self._check_ids("end of sequence", tuple(self._eos))
        self._ending: dict[tuple[str, ...], np.ndarray] = {}
        self._pieces: list[str] = []

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Generation]]:
        """The n candidates of each request, in order.

        Raises ValueError for an id outside the model's vocabulary.
        """
        positions = self.model.config.max_position_embeddings
        results: dict[int, list[Generation]] = {}
        groups: dict[tuple, list[int]] = defaultdict(list)
        for i, r in enumerate(requests):
            self._check_ids("generate", r.context + r.suppress)
            if len(r.context) >= positions:
                results[i] = [Generation((), np.zeros(0, np.float32), "", "length")] * r.n
                continue
            shape = bucket(len(r.context)), bucket(r.max_tokens), r.n, r.mode
            groups[(*shape, r.stop, r.suppress)].append(i)

        for group in groups.values():
            for batch, size in _batches(group, self.batch_size):
                generations = self._generate_batch([requests[i] for i in batch], size)
                results.update(zip(batch, generations, strict=True))
        return [results[i] for i in range(len(requests))]

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """Log-probabilities (nats, float32) of each request's continuation, token by token, in order.

        Requests that share at least half of their context share its computation too. Raises ValueError for
        an id outside the model's vocabulary.
        """
        alike: dict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
        for i, r in enumerate(requests):
            self._check_ids("score", r.context + r.continuation + r.suppress)
            length = bucket(len(r.context) + len(r.continuation))
            alike[r.suppress, max(self.row_length, length)].append(i)

        results: dict[int, np.ndarray] = {}
        for (suppress, row_length), members in alike.items():
            groups = list(_sharing(requests, members, row_length))
            scores = score_groups(
                self.model,
                [[Pair(requests[i].context, requests[i].continuation) for i in group] for group in groups],
                row_length=row_length,
                rows_per_batch=self.rows_per_batch,
                suppress=suppress,
            )
            for group, logprobs in zip(groups, scores, strict=True):
                results.update(zip(group, logprobs, strict=True))
        return [results[i] for i in range(len(requests))]

    def _generate_batch(self, requests: list[GenerateRequest], size: int) -> list[list[Generation]]:
        """Requests of one group, padded to `size` prompts."""
        first = requests[0]

        def column(values: Sequence[float], filler: float, dtype: DTypeLike) -> Array:
            return jnp.asarray(np.array([*values, *[filler] * (size - len(requests))], dtype))

        tokens_BT = np.zeros((size, bucket(len(first.context))), np.int32)
        for b, r in enumerate(requests):
            tokens_BT[b, : len(r.context)] = r.context
        positions = self.model.config.max_position_embeddings
        limit = [min(r.max_tokens, positions - len(r.context)) for r in requests]
        suppressed_V = np.zeros(self.model.config.vocab_size, bool)
        suppressed_V[list(first.suppress)] = True
        wishes = Wishes(
            length_B=column([len(r.context) for r in requests], 1, np.int32),
            limit_B=column(limit, 0, np.int32),
            temperature_B=column([r.temperature for r in requests], 1, np.float32),
            top_p_B=column([r.top_p for r in requests], 1, np.float32),
            seed_B=column([r.seed for r in requests], 0, np.uint32),
            ending_V=jnp.asarray(self._ending_mask(first.stop)),
            suppressed_V=jnp.asarray(suppressed_V),
        )

        # Decoding runs at powers of two: it costs little in extra places and much in extra programs.
        room = max(128, 1 << (tokens_BT.shape[1] - 1).bit_length())
        prefix = prefill(self._graph, self._weights, jnp.asarray(tokens_BT), wishes.length_B, room=room)
        decoding = begin(prefix, wishes.limit_B, candidates=first.n, space=bucket(first.max_tokens))
        until = 0
        while True:
            until = min(until + self.chunk, max(limit))
            decoding = decode(
                self._graph, self._weights, prefix, wishes, decoding, jnp.int32(until), mode=first.mode
            )
            tokens_BCS, count_BC = np.asarray(decoding.tokens_BCS), np.asarray(decoding.count_BC)
            running_BC = np.array(decoding.running_BC)
            if not running_BC.any():
                break
            for b, c in np.argwhere(running_BC) if first.stop else ():
                text = self._decode(tokens_BCS[b, c, : count_BC[b, c]])
                running_BC[b, c] = _cut(text, first.stop) is None
            decoding = replace(decoding, running_BC=jnp.asarray(running_BC))

        logprobs_BCS = np.asarray(decoding.logprobs_BCS)
        generations = [
            [
                self._generation(tokens_BCS[b, c, :count], logprobs_BCS[b, c, :count], first.stop)
                for c, count in enumerate(count_BC[b])
            ]
            for b in range(len(requests))
        ]
        return generations

    def _generation(self, tokens: np.ndarray, logprobs: np.ndarray, stop: tuple[str, ...]) -> Generation:
        """Cut a row where its text first holds a stop string."""
        ended = int(tokens[-1]) in self._eos
        body = tokens[:-1] if ended else tokens
        text = self._decode(body)
        finish = "end" if ended else "length"
        count = len(tokens)
        if _cut(text, stop) is not None:
            finish = "stop"
            count = bisect_left(
                range(len(body)), True, key=lambda k: _cut(self._decode(body[:k]), stop) is not None
            )
            text = self._decode(body[:count])
            text = text[: _cut(text, stop)]
        return Generation(tuple(tokens[:count].tolist()), logprobs[:count].copy(), text, finish)

    def _decode(self, tokens: np.ndarray) -> str:
        text = self.tokenizer.decode(
            tokens.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return cast(str, text)

    def _ending_mask(self, stop: tuple[str, ...]) -> np.ndarray:
        """Bool `[V]`: the tokens that end a row by themselves, EOS or a token that holds a stop string.

        A stop string that spans tokens is for the host to find.
        """
        if stop not in self._ending:
            V = self.model.config.vocab_size
            if stop and not self._pieces:
                self._pieces = [self._decode(np.array([token])) for token in range(V)]
            ending_V = np.array([_cut(piece, stop) is not None for piece in self._pieces] or [False] * V)
            ending_V[list(self._eos)] = True
            self._ending[stop] = ending_V
        return self._ending[stop]

    def _check_ids(self, what: str, ids: tuple[int, ...]) -> None:
        V = self.model.config.vocab_size
        for token in ids:
            if not 0 <= token < V:
                raise ValueError(f"{what}: token id {token} is outside the model's vocabulary of {V}")


def _batches(members: list[int], size: int) -> Iterator[tuple[list[int], int]]:
    """Cut a group in batches of `size`; the rest goes in quarters of it when that computes less.

    Only these two sizes are ever compiled. Yields each batch's members and its size.
    """
    quarter = max(1, size // 4)
    start = 0
    while start < len(members):
        take = size if len(members) - start > 2 * quarter else quarter
        yield members[start : start + take], take
        start += take


def _sharing(requests: Sequence[ScoreRequest], members: list[int], row_length: int) -> Iterator[list[int]]:
    """Groups of requests with at least half a context in common, each small enough for one row as a tree."""
    sequences = {i: requests[i].context + requests[i].continuation for i in members}
    group: list[int] = []
    nodes = 0
    for i in sorted(members, key=sequences.__getitem__):
        # In lexicographic order a sequence shares most with the one before it: the rest are new tree nodes.
        shared = _common_prefix(sequences[group[-1]], sequences[i]) if group else 0
        new = len(sequences[i]) - shared
        if group and (2 * shared < len(requests[i].context) or nodes + new > row_length):
            yield group
            group, nodes, new = [], 0, len(sequences[i])
        group.append(i)
        nodes += new
    if group:
        yield group


def _common_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _cut(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins in `text`."""
    return min((at for s in stop if (at := text.find(s)) >= 0), default=None)
