"""What prefiltering, mining and filtering did, counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rationalyst_jax.mine.likelihood_filter import FilteredTriple
from rationalyst_jax.mine.parse import FAITHFUL
from rationalyst_jax.mine.prefilter import PAPER_ALPHA, PrefilteredDocument
from rationalyst_jax.mine.triples import Extraction

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class MineSummary:
    """From documents to triples.

    annotated: documents whose copy holds a marker, or that had rationales inserted; faithful: documents whose
    copy is faithful, or of which none was made; document_outcomes, rationale_outcomes: how many met each
    outcome of parsing (`mine/parse.py`), the most frequent first.
    """

    documents: int
    annotated: int
    faithful: int
    triples: int
    document_outcomes: Mapping[str, int]
    rationale_outcomes: Mapping[str, int]


@dataclass(frozen=True)
class FilterSummary:
    """From triples to kept rationales.

    reasons: how many were kept or dropped for each reason of the filter, the most frequent first. taus: each
    source's threshold (nats) and how many of its rationales were kept, of how many. gains: quantiles of the
    gain (nats), empty where nothing was scored.
    """

    rationales: int
    kept: int
    reasons: Mapping[str, int]
    taus: Mapping[str, tuple[float, int, int]]
    gains: Mapping[float, float]


@dataclass(frozen=True)
class SetSummary:
    """One reference set: its texts that make the centroid, those held out, and the shares of these that reach
    alpha and the paper's."""

    texts: int
    held_out: int
    recall: float
    paper_recall: float


@dataclass(frozen=True)
class SourceSummary:
    """One source of documents: how many, how many are kept, and how many the paper's alpha would keep."""

    documents: int
    kept: int
    paper_kept: int


@dataclass(frozen=True)
class PrefilterSummary:
    """The smallest cosine of a kept document, the reference sets by their names, and the sources of documents
    by their kept shares, the largest first."""

    alpha: float
    sets: Mapping[str, SetSummary]
    sources: Mapping[str, SourceSummary]


def summarize_mined(extraction: Extraction) -> MineSummary:
    """Counts what became of documents and rationales."""
    return MineSummary(
        documents=sum(extraction.documents.values()),
        annotated=extraction.annotated,
        faithful=sum(n for outcome, n in extraction.documents.items() if outcome in FAITHFUL),
        triples=len(extraction.triples),
        document_outcomes=dict(Counter(extraction.documents).most_common()),
        rationale_outcomes=dict(Counter(extraction.rationales).most_common()),
    )


def summarize_filtered(filtered: Sequence[FilteredTriple]) -> FilterSummary:
    """Counts what was kept, and why the rest was not."""
    taus = {}
    for source in dict.fromkeys(triple.source for triple in filtered):
        of_source = [triple for triple in filtered if triple.source == source]
        taus[source] = of_source[0].tau, sum(triple.kept for triple in of_source), len(of_source)
    gains = [triple.gain for triple in filtered if triple.gain is not None]
    return FilterSummary(
        rationales=len(filtered),
        kept=sum(triple.kept for triple in filtered),
        reasons=dict(Counter(triple.reason for triple in filtered).most_common()),
        taus=taus,
        gains={q: float(np.quantile(gains, q)) for q in QUANTILES} if gains else {},
    )


def summarize_prefiltered(scored: Sequence[PrefilteredDocument]) -> dict[str, SourceSummary]:
    """Counts what was kept of each source; the sources by their kept shares, the largest first."""
    documents = Counter(one.source for one in scored)
    kept = Counter(one.source for one in scored if one.kept)
    by_paper = Counter(one.source for one in scored if one.cosine >= PAPER_ALPHA)
    found = {source: SourceSummary(n, kept[source], by_paper[source]) for source, n in documents.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1].kept / item[1].documents))
