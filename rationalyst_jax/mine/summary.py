"""What mining did, counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rationalyst_jax.mine.likelihood_filter import FilteredTriple
from rationalyst_jax.mine.parse import FAITHFUL
from rationalyst_jax.mine.triples import Extraction


@dataclass(frozen=True)
class MiningSummary:
    """From documents to kept rationales.

    annotated: documents whose copy holds a marker; faithful: documents whose copy is faithful; per outcome of
    parsing (`mine.parse`) and per reason of the filter (`mine.likelihood_filter`) how many met it.
    """

    documents: int
    annotated: int
    faithful: int
    triples: int
    kept: int
    document_outcomes: Mapping[str, int]
    rationale_outcomes: Mapping[str, int]
    reasons: Mapping[str, int]


def summarize(extraction: Extraction, filtered: Sequence[FilteredTriple]) -> MiningSummary:
    """Counts; the keys of each mapping come most frequent first."""
    reasons = Counter(triple.reason for triple in filtered)
    return MiningSummary(
        documents=sum(extraction.documents.values()),
        annotated=extraction.annotated,
        faithful=sum(n for outcome, n in extraction.documents.items() if outcome in FAITHFUL),
        triples=len(extraction.triples),
        kept=sum(triple.kept for triple in filtered),
        document_outcomes=dict(Counter(extraction.documents).most_common()),
        rationale_outcomes=dict(Counter(extraction.rationales).most_common()),
        reasons=dict(reasons.most_common()),
    )
