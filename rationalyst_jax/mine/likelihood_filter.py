"""Which rationales make the text after them more likely?

With x the tokens of the following text, a rationale's gain in nats is (arXiv 2410.01044)

    gain = Σ_t decay^t · [log p(x_t | preceding, rationale, x_<t) − log p(x_t | preceding, x_<t)]

and it is kept when its gain reaches tau. All rationales of a document, with and without, share a token tree.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.likelihood import Pair, Reduction, reduce_logprobs, score
from rationalyst_jax.lm.llama import Llama
from rationalyst_jax.lm.prompt import PromptSet, render
from rationalyst_jax.lm.tree import build_tree
from rationalyst_jax.mine.triples import Triple

Reason = Literal[
    "gain",  # kept: its gain reaches tau
    "all",  # kept: everything that could be scored is
    "drawn",  # kept by lot
    "below_tau",
    "not_drawn",
    "too_long",  # not scored: doesn't fit in a row of the model
]


@dataclass(frozen=True)
class FilterConfig:
    """How rationales are judged.

    reduction, decay: how per-token log-probabilities become one number (`lm.likelihood.reduce_logprobs`).
    tau: smallest gain in nats that keeps a rationale; tau_by_source overrides it. (The paper: 1.2 for GSM8K,
        0.5 for ECQA, 0 for The Pile.)
    keep: "gain"; or, as ablations, "all", or "random": as many of each source as "gain" would keep, drawn by
        lot with `seed`.
    suppress: marker tokens that get no probability while scoring. A model that has seen rationales inside of
        text expects, after one, the next <BOT> at the next line break and charges what stands there instead
        about 0.3 nats: on the side with the rationale, for no fault of the rationale.
    row_length: tokens of a packed row, hence of the longest document with rationales; rows_per_batch rows are
        computed at once. block: documents packed together.
    """

    reduction: Reduction = "decayed_sum"
    decay: float = 0.9
    tau: float = 0.0
    tau_by_source: Mapping[str, float] = field(default_factory=dict)
    keep: Literal["gain", "all", "random"] = "gain"
    seed: int = 0
    suppress: tuple[str, ...] = ()
    row_length: int = 1024
    rows_per_batch: int = 8
    block: int = 256


@dataclass(frozen=True)
class ScoredTriple(Triple):
    """A triple and the reduced log-likelihoods (nats) of its following text; all None where it was too long.

    gain: logprob_with - logprob_without.
    """

    logprob_without: float | None
    logprob_with: float | None
    gain: float | None


@dataclass(frozen=True)
class FilteredTriple(ScoredTriple):
    """A scored triple, the threshold (nats) of its source, and whether and why it was kept."""

    tau: float
    kept: bool
    reason: Reason


def score_triples(
    triples: Sequence[Triple],
    model: Llama,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    config: FilterConfig,
    progress: Callable[[int], None] = lambda done: None,
) -> list[ScoredTriple]:
    """The gain of every triple, in their order.

    `progress` is called with the number of triples that have been scored since its last call.

    Raises ValueError for a suppressed marker that is no single token, and for a log-likelihood that is not
    finite (a broken model, or a suppressed token in the text).
    """
    suppress = marker_ids(tokenizer, config.suppress)
    by_document: dict[str, list[int]] = {}
    for i, triple in enumerate(triples):
        by_document.setdefault(triple.document_id, []).append(i)
    documents = list(by_document.values())

    scored = [_scored(triple, None, None) for triple in triples]
    for first in range(0, len(documents), config.block):
        block = documents[first : first + config.block]
        pairs = {i: _pairs(triples[i], tokenizer, prompts) for document in block for i in document}
        groups = [group for document in block for group in _fitting(document, pairs, config.row_length)]
        logprobs = score(
            model,
            [[pair for i in group for pair in pairs[i]] for group in groups],
            row_length=config.row_length,
            rows_per_batch=config.rows_per_batch,
            suppress=suppress,
        )
        for group, of_pairs in zip(groups, logprobs, strict=True):
            reduced = [reduce_logprobs(logprob, config.reduction, config.decay) for logprob in of_pairs]
            for i, without, guided in zip(group, reduced[::2], reduced[1::2], strict=True):
                scored[i] = _scored(triples[i], without, guided)
        progress(len(pairs))
    return scored


def decide(scored: Iterable[ScoredTriple], config: FilterConfig) -> list[FilteredTriple]:
    """Keeps or drops each triple, in their order; filtered triples may be decided anew."""
    scored = list(scored)
    reasons: list[Reason] = []
    for triple in scored:
        if triple.gain is None:
            reasons.append("too_long")
        elif config.keep == "all":
            reasons.append("all")
        else:
            reasons.append("gain" if triple.gain >= _tau(triple, config) else "below_tau")
    if config.keep == "random":
        reasons = _by_lot(scored, reasons, config.seed)
    return [
        FilteredTriple(
            **{f.name: getattr(triple, f.name) for f in fields(ScoredTriple)},
            tau=_tau(triple, config),
            kept=reason in ("gain", "all", "drawn"),
            reason=reason,
        )
        for triple, reason in zip(scored, reasons, strict=True)
    ]


def marker_ids(tokenizer: PreTrainedTokenizerBase, markers: Iterable[str]) -> tuple[int, ...]:
    """The token id of each marker; raises ValueError for one the tokenizer has no single token for."""
    ids = []
    for marker in markers:
        encoded = tokenizer(marker, add_special_tokens=False)["input_ids"]
        if len(encoded) != 1:
            raise ValueError(f"suppress: {marker!r} is {len(encoded)} tokens of this tokenizer, not one")
        ids.append(encoded[0])
    return tuple(ids)


def _pairs(triple: Triple, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> tuple[Pair, Pair]:
    """The following text without and with the rationale."""
    without = {"preceding": triple.preceding}
    guided = {"preceding": triple.preceding, "rationale": triple.rationale}
    target = triple.following
    return (
        Pair(*render(tokenizer, prompts["follow"], without, target=target, close=False)),
        Pair(*render(tokenizer, prompts["follow_guided"], guided, target=target, close=False)),
    )


def _fitting(
    document: Sequence[int], pairs: Mapping[int, tuple[Pair, Pair]], row_length: int
) -> list[Sequence[int]]:
    """A document's triples in groups whose trees fit in a row; drops triples that do not fit alone."""
    tree, _ = build_tree([pair.context + pair.continuation for i in document for pair in pairs[i]])
    if len(tree) <= row_length:
        return [document]
    if len(document) == 1:
        return []
    half = len(document) // 2
    return _fitting(document[:half], pairs, row_length) + _fitting(document[half:], pairs, row_length)


def _scored(triple: Triple, without: float | None, guided: float | None) -> ScoredTriple:
    gain = None
    if without is not None and guided is not None:
        gain = guided - without
        if not math.isfinite(gain):
            raise ValueError(
                f"document {triple.document_id!r}, rationale {triple.index}: log-likelihood of the following "
                f"text is {without} without and {guided} with the rationale"
            )
    fields_of_triple = {f.name: getattr(triple, f.name) for f in fields(Triple)}
    return ScoredTriple(**fields_of_triple, logprob_without=without, logprob_with=guided, gain=gain)


def _tau(triple: Triple, config: FilterConfig) -> float:
    return config.tau_by_source.get(triple.source, config.tau)


def _by_lot(scored: Sequence[ScoredTriple], reasons: Sequence[Reason], seed: int) -> list[Reason]:
    """Of each source as many triples as `reasons` keeps, drawn from all that were scored."""
    rng = np.random.default_rng(seed)
    drawn: set[int] = set()
    for source in dict.fromkeys(triple.source for triple in scored):
        candidates = [i for i, t in enumerate(scored) if t.source == source and t.gain is not None]
        wanted = sum(reasons[i] == "gain" for i in candidates)
        drawn.update(rng.choice(candidates, wanted, replace=False).tolist())
    return [
        reason if reason == "too_long" else "drawn" if i in drawn else "not_drawn"
        for i, reason in enumerate(reasons)
    ]
