"""How mined rationales differ from others at the same places: gains, differences, and shares of faults."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rationalyst_jax.evaluate.rationale_faults import FAULTS, Faults
from rationalyst_jax.evaluate.statistics import Interval, mean_interval, proportion_interval

Alternative = Literal["mined", "human", "shuffled", "repeated", "empty"]
ALTERNATIVES: Mapping[Alternative, str] = {
    "mined": "mined",
    "human": "a person's",
    "shuffled": "another document's",
    "repeated": "the sentence before",
    "empty": "an empty phrase",
}
NOT_ABOVE_EMPTY = "not_above_empty"
ALL_FAULTS = {**FAULTS, NOT_ABOVE_EMPTY: "gains no more than the empty phrase"}


@dataclass(frozen=True)
class Inspected:
    """A place of a document and what was put there.

    texts: the alternatives that there are; gains: those (nats) of the alternatives that were scored; kept:
    the alternatives whose gain reaches the filter's threshold; faults: those of the mined rationale and of
    the human explanation.
    """

    document_id: str
    source: str
    index: int
    following: str
    texts: Mapping[Alternative, str]
    gains: Mapping[Alternative, float]
    kept: frozenset[Alternative]
    faults: Mapping[Alternative, Faults]

    def fault_names(self, of: Alternative) -> tuple[str, ...]:
        """The faults of one alternative, by its words and, where it was scored, by its gain."""
        names = self.faults[of].found
        if of in self.gains and "empty" in self.gains and self.gains[of] <= self.gains["empty"]:
            return (*names, NOT_ABOVE_EMPTY)
        return names


@dataclass(frozen=True)
class GainSummary:
    """Of one alternative, over the n places where it was scored: its mean gain (nats), how much higher that
    of the mined rationale is at the same places (None for itself), and the share that the filter would keep.
    """

    n: int
    gain: Interval
    mined_above: Interval | None
    kept: Interval


@dataclass(frozen=True)
class FaultSummary:
    """Over n rationales the share that has each fault; gain-based faults only where there are gains."""

    n: int
    shares: Mapping[str, Interval]


@dataclass(frozen=True)
class Inspection:
    """gains: by alternative, empty without a model. faults: by group of rationales: "mined", "human" and,
    with a model, "mined, kept".
    """

    documents: int
    rationales: int
    gains: Mapping[Alternative, GainSummary]
    faults: Mapping[str, FaultSummary]


def summarize_inspected(inspected: Sequence[Inspected]) -> Inspection:
    """Means and shares with their 95 % intervals, in which each document is a cluster."""
    scored: dict[Alternative, list[Inspected]] = {
        name: [place for place in inspected if name in place.gains and "mined" in place.gains]
        for name in ALTERNATIVES
    }
    groups: dict[str, tuple[Alternative, Callable[[Inspected], bool]]] = {
        "mined": ("mined", lambda place: True),
        "mined, kept": ("mined", lambda place: "mined" in place.kept),
        "human": ("human", lambda place: "human" in place.faults),
    }
    found: dict[str, tuple[Alternative, list[Inspected]]] = {
        name: (of, list(filter(holds, inspected))) for name, (of, holds) in groups.items()
    }
    return Inspection(
        documents=len({place.document_id for place in inspected}),
        rationales=len(inspected),
        gains={name: _gains(name, places) for name, places in scored.items() if places},
        faults={name: _faults(of, places) for name, (of, places) in found.items() if places},
    )


def _gains(name: Alternative, places: Sequence[Inspected]) -> GainSummary:
    clusters = [place.document_id for place in places]
    above = [place.gains["mined"] - place.gains[name] for place in places]
    return GainSummary(
        n=len(places),
        gain=mean_interval([place.gains[name] for place in places], clusters=clusters),
        mined_above=None if name == "mined" else mean_interval(above, clusters=clusters),
        kept=proportion_interval([name in place.kept for place in places], clusters),
    )


def _faults(of: Alternative, places: Sequence[Inspected]) -> FaultSummary:
    shares = {}
    for fault in ALL_FAULTS:
        judged = [place for place in places if fault in FAULTS or of in place.gains]
        if judged:
            flags = [fault in place.fault_names(of) for place in judged]
            shares[fault] = proportion_interval(flags, [place.document_id for place in judged])
    return FaultSummary(len(places), shares)
