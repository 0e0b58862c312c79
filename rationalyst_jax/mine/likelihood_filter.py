"""Which rationales make the text after them more likely?

With x the tokens of the following text, a rationale's gain in nats is (arXiv 2410.01044)

    gain = Σ_t decay^t · [log p(x_t | preceding, rationale, x_<t) − log p(x_t | preceding, x_<t)]

and it is kept when its gain reaches tau. All rationales of a document, with and without, share a token tree.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.files.rows import Row, append_rows, kept_rows
from rationalyst_jax.files.settings import digest
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.trees.likelihood import Pair, Scores, Work, one_ahead, score
from rationalyst_jax.lm.trees.reduction import reduce_logprobs
from rationalyst_jax.lm.weights.tokenizer import marker_ids
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.mine.triples import Triple
from rationalyst_jax.prompts.prompt import PromptSet, render

Reason = Literal[
    "gain",  # kept: its gain reaches tau
    "all",  # kept: everything that could be scored is
    "drawn",  # kept by lot
    "below_tau",
    "not_best",  # reaches tau, but another rationale of its place gains more
    "not_drawn",
    "not_in_share",  # would have been kept, but the lot left it out of the share that is
    "too_long",  # not scored: doesn't fit in a row, or in the model's positions
]
_KEPT = ("gain", "all", "drawn")


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
    path: Path,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
    mesh: Mesh | None = None,
) -> tuple[list[ScoredTriple], Work]:
    """The gain of every triple, in their order, and the work that took (of this call, not of earlier ones).

    Scores are written to the JSONL file `path`, one row per document, `config.block` documents at a time. A
    file that is already there is continued, and ends as that of an uninterrupted run; blocks with a document
    whose triples have changed since are scored again. `progress` is told how
    many triples are scored, of how many, and how many tokens this call has computed. Under a `mesh`, on which
    the model's weights lie, its devices share the rows of a batch.

    Raises ValueError for a suppressed marker that is no single token, and for a log-likelihood that is not
    finite (a broken model, or a suppressed token in the text).
    """
    suppress = marker_ids(tokenizer, config.suppress)
    by_document = numbers_by_document(triples)
    documents = [[triples[i] for i in places] for places in by_document.values()]
    name_of = document_of(triples)
    rows = kept_rows(path, lambda place, row: name_of(row))
    blocks = [documents[first : first + config.block] for first in range(0, len(documents), config.block)]
    # A block is scored as a whole: the last bits of a sum depend on what is computed beside it.
    missing = [block for block in blocks if any(document[0].document_id not in rows for document in block)]
    done = len(triples) - sum(len(document) for block in missing for document in block)
    work = Work()

    def tell(nodes: int = 0) -> None:
        progress(done, len(triples), work.nodes + nodes)

    tell()
    begun = (_begin(block, model, tokenizer, prompts, config, suppress, mesh) for block in missing)
    for block in one_ahead(begun):
        new = list(block.rows(config, tell))
        append_rows(path, new)
        rows |= {row["document_id"]: row for row in new}
        done += sum(map(len, block.documents))
        work += block.scores.work
        tell()
    scored: dict[int, ScoredTriple] = {}
    for name, places in by_document.items():
        for i, of_triple in zip(places, rows[name]["scores"], strict=True):
            scored[i] = _scored(triples[i], of_triple)
    return [scored[i] for i in range(len(triples))], work


def numbers_by_document(triples: Sequence[Triple]) -> dict[str, list[int]]:
    """The numbers of each document's triples, by its id, in the order in which documents are scored."""
    by_document: dict[str, list[int]] = {}
    for i, triple in enumerate(triples):
        by_document.setdefault(triple.document_id, []).append(i)
    return by_document


def document_of(triples: Sequence[Triple]) -> Callable[[Row], str | None]:
    """What tells of a row of scores which document's it is; None where that has other triples now."""
    by_document = numbers_by_document(triples)
    made_of = {name: _digest(triples[i] for i in numbers) for name, numbers in by_document.items()}

    def name_of(row: Row) -> str | None:
        name = str(row.get("document_id"))
        return name if row.get("triples") == made_of.get(name, "") else None

    return name_of


@dataclass(frozen=True)
class _Block:
    """Documents whose log-likelihoods the device is computing, and which of their triples fit in a row."""

    documents: Sequence[Sequence[Triple]]
    fits: Sequence[Sequence[bool]]
    scores: Scores

    def rows(self, config: FilterConfig, working: Callable[[int], None]) -> Iterator[dict[str, Any]]:
        """For each document a row of [without, with] for each of its triples, None for one too long.

        Waits for the device, and tells `working` as `Scores.result` does.
        """
        computed = self.scores.result(working)
        for document, fits, logprobs in zip(self.documents, self.fits, computed, strict=True):
            reduced = [reduce_logprobs(of_pair, config.reduction, config.decay) for of_pair in logprobs]
            both = iter(zip(reduced[::2], reduced[1::2], strict=True))
            scores = [next(both) if fit else None for fit in fits]
            for triple, of_triple in zip(document, scores, strict=True):
                if of_triple is not None and not math.isfinite(of_triple[1] - of_triple[0]):
                    raise ValueError(
                        f"document {triple.document_id!r}, rationale {triple.index}: log-likelihood of the "
                        f"following text is {of_triple[0]} without and {of_triple[1]} with the rationale"
                    )
            name = document[0].document_id
            yield {"document_id": name, "triples": _digest(document), "scores": scores}


def _digest(document: Iterable[Triple]) -> str:
    """What the scores of a document's triples depend on."""
    return digest(
        text.encode()
        for triple in document
        for text in (triple.preceding, triple.rationale, triple.following)
    )


def _begin(
    documents: Sequence[Sequence[Triple]],
    model: Llama,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    config: FilterConfig,
    suppress: Sequence[int],
    mesh: Mesh | None,
) -> _Block:
    """Sends a block of documents to the device, the triples of each in one group."""
    longest = min(config.row_length, model.config.max_position_embeddings)
    fits, groups = fitting_groups(documents, tokenizer, prompts, longest)
    scores = score(
        model,
        groups,
        row_length=config.row_length,
        rows_per_batch=config.rows_per_batch,
        suppress=suppress,
        mesh=mesh,
    )
    return _Block(documents, fits, scores)


def fitting_groups(
    documents: Sequence[Sequence[Triple]],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    longest: int,
) -> tuple[list[list[bool]], list[list[Pair]]]:
    """Whether each triple of each document has at most `longest` tokens, and a group of the pairs of those
    that do."""
    pairs = [[filter_pairs(triple, tokenizer, prompts) for triple in document] for document in documents]
    fits = [[max(map(len, both)) <= longest for both in of_document] for of_document in pairs]
    groups = [
        [pair for both, fit in zip(*of_document, strict=True) if fit for pair in both]
        for of_document in zip(pairs, fits, strict=True)
    ]
    return fits, groups


def _scored(triple: Triple, scores: tuple[float, float] | None) -> ScoredTriple:
    without, guided, gain = (None, None, None) if scores is None else (*scores, scores[1] - scores[0])
    return ScoredTriple(**_fields(triple, Triple), logprob_without=without, logprob_with=guided, gain=gain)


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
    if config.per_place == "best":
        reasons = _best(scored, reasons)
    if config.keep == "random":
        reasons = _by_lot(scored, reasons, config.seed)
    reasons = _share(reasons, config.share, config.seed)
    return [
        FilteredTriple(
            **_fields(triple, ScoredTriple),
            tau=_tau(triple, config),
            kept=reason in _KEPT,
            reason=reason,
        )
        for triple, reason in zip(scored, reasons, strict=True)
    ]


def filter_pairs(triple: Triple, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> tuple[Pair, Pair]:
    """The following text without and with the rationale."""
    without = {"preceding": triple.preceding}
    guided = {"preceding": triple.preceding, "rationale": triple.rationale}
    target = triple.following
    return (
        Pair(*render(tokenizer, prompts["follow"], without, target=target, close=False)),
        Pair(*render(tokenizer, prompts["follow_guided"], guided, target=target, close=False)),
    )


def _tau(triple: Triple, config: FilterConfig) -> float:
    return config.tau_by_source.get(triple.source, config.tau)


def _best(scored: Sequence[ScoredTriple], reasons: Sequence[Reason]) -> list[Reason]:
    """Leaves of each place's triples that reach tau the one with the largest gain, the first of equal
    ones."""
    by_place: dict[tuple[str, int], list[int]] = {}
    for i, reason in enumerate(reasons):
        if reason == "gain":
            by_place.setdefault((scored[i].document_id, scored[i].start), []).append(i)
    best = {max(at_place, key=lambda i: scored[i].gain or 0.0) for at_place in by_place.values()}
    return ["not_best" if reason == "gain" and i not in best else reason for i, reason in enumerate(reasons)]


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


def _share(reasons: Sequence[Reason], share: float, seed: int) -> list[Reason]:
    """Leaves so large a share of what is kept, at least one: the first of an order that does not depend on
    the share, so that a smaller one is part of a larger one."""
    kept = [i for i, reason in enumerate(reasons) if reason in _KEPT]
    order = np.random.default_rng((seed, 1)).permutation(kept)  # not the stream of `_by_lot`
    left_out = set(order[max(1, round(share * len(kept))) :].tolist())
    return ["not_in_share" if i in left_out else reason for i, reason in enumerate(reasons)]


def _fields(triple: Triple, of: type[Triple]) -> dict[str, Any]:
    """What `triple` knows of the fields of class `of`."""
    return {f.name: getattr(triple, f.name) for f in fields(of)}
