"""Documents with placed rationales → triples (preceding, rationale, following)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rationalyst_jax.mine.documents import Annotated, Document, Insertion
from rationalyst_jax.mine.parse import USABLE, Parsed, RationaleOutcome, parse, read_insertion


@dataclass(frozen=True)
class Triple:
    """One rationale and the text of the document around it (arXiv 2410.01044).

    preceding: the document up to the rationale, without rationales; it ends with white space.
    following: the document from there to the next usable rationale, or where rationales were inserted to the
        next place, or to the end; document[start:end].
    index: the rationale's number in its document: of a copy among the usable ones; where they were inserted
        among all, so that candidate k of n for place i has the number i · n + k.
    """

    document_id: str
    source: str
    index: int
    start: int
    end: int
    preceding: str
    rationale: str
    following: str


@dataclass(frozen=True)
class Cut:
    """The triples of one document, and what became of it and of each rationale that was written.

    outcome: of `mine.parse`, or "too_long" to be annotated, "inserted", "no_place" to insert at.
    """

    triples: Sequence[Triple]
    outcome: str
    rationales: Sequence[RationaleOutcome]


@dataclass(frozen=True)
class Extraction:
    """Triples, with how many documents and rationales met which outcome (of `mine.parse`).

    annotated: documents in whose copy there is any marker, or for which any rationale was sampled.
    """

    triples: tuple[Triple, ...]
    annotated: int
    documents: Mapping[str, int]
    rationales: Mapping[str, int]


def triple_at(document: Document, index: int, start: int, end: int, rationale: str) -> Triple:
    """The triple of a rationale before document[start:end]."""
    return Triple(
        document_id=document.id,
        source=document.source,
        index=index,
        start=start,
        end=end,
        preceding=document.text[:start],
        rationale=rationale,
        following=document.text[start:end],
    )


def cut_triples(document: Document, parsed: Parsed) -> list[Triple]:
    """One triple for each usable rationale; none where the copy was not faithful."""
    bounds = [start for start, _ in parsed.placed] + [len(document.text)]
    return [
        triple_at(document, index, bounds[index], bounds[index + 1], rationale)
        for index, (_, rationale) in enumerate(parsed.placed)
    ]


def cut_inserted(insertion: Insertion) -> tuple[list[Triple], list[RationaleOutcome]]:
    """One triple for each usable rationale, and the outcomes of all."""
    triples = []
    outcomes = []
    for place, rationales in zip(insertion.places, read_insertion(insertion), strict=True):
        for rationale in rationales:
            if rationale.outcome in USABLE:
                at = len(outcomes), place.start, place.end
                triples.append(triple_at(insertion.document, *at, rationale.text))
            outcomes.append(rationale.outcome)
    return triples, outcomes


def cut(annotation: Annotated, min_similarity: float = 0.9) -> Cut:
    """What a model wrote about one document, read and cut."""
    if annotation.finish == "too_long":
        return Cut([], "too_long", [])
    if isinstance(annotation, Insertion):
        triples, outcomes = cut_inserted(annotation)
        return Cut(triples, "inserted" if outcomes else "no_place", outcomes)
    parsed = parse(annotation.document.text, annotation.output, min_similarity)
    written: list[RationaleOutcome] = [rationale.outcome for rationale in parsed.rationales]
    return Cut(cut_triples(annotation.document, parsed), parsed.outcome, written)


def extract(annotations: Iterable[Annotated], min_similarity: float = 0.9) -> Extraction:
    """Cuts what was written about every document, counting what became of documents and rationales."""
    triples: list[Triple] = []
    annotated = 0
    documents = Counter[str]()
    rationales = Counter[str]()
    for annotation in annotations:
        found = cut(annotation, min_similarity)
        annotated += bool(found.rationales)
        documents[found.outcome] += 1
        rationales.update(found.rationales)
        triples += found.triples
    return Extraction(tuple(triples), annotated, documents, rationales)
