"""What a model wrote, read back against the document: an annotated copy of it, or rationales for its places.

A model's copy is used for two things only: to judge how faithful it is, and to see where in the *document*
each rationale belongs. Text for training and scoring is always cut from the document. Both the judgement and
the places go by the characters that are not white space, because models reflow text freely.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rapidfuzz.distance import Levenshtein, Opcode

from rationalyst_jax.mine.documents import Insertion, SampledPlace

DocumentOutcome = Literal[
    "exact",  # the copy equals the document up to white space
    "near",  # similar enough
    "trimmed",  # exact or near once text around the copy (an introduction, a code fence) is taken off
    "unannotated",  # exact, near or trimmed, and no marker at all
    "truncated",  # begins like the document and stops too early
    "changed",  # too different
    "empty",  # nothing but rationales, or nothing
    "marked_document",  # the document itself holds a marker: no telling whose is whose
    "inserted",  # nothing was copied
    "no_place",  # nothing was copied, and there is no place for a rationale
]
RationaleOutcome = Literal[
    "clean",
    "altered",  # usable: a marker spelled differently, [BOT] or </BOT>
    "line_end",  # usable: never closed, but its line ends and it is no text of the document
    "unclosed",  # never closed, and nothing says where it ends; or cut off when its tokens ran out
    "nested",  # a rationale inside a rationale
    "stray",  # a closing marker with nothing to close
    "empty",
    "copied",  # a stretch of the document: as a hint it would give away what follows
    "inside_word",
    "at_change",  # the document's text is missing or different right there
    "no_preceding",  # at the very start
    "no_following",  # at the very end, or directly before another rationale
    "unfaithful",  # in a copy that is not faithful
    "repeated",  # the words of another one that was sampled for the same place
]
FAITHFUL: frozenset[DocumentOutcome] = frozenset(
    {"exact", "near", "trimmed", "unannotated", "inserted", "no_place"}
)
USABLE: frozenset[RationaleOutcome] = frozenset({"clean", "altered", "line_end"})

_MARKER = re.compile(r"(?:<\|?|\[|&lt;)\s*(/?)\s*(BOT|EOT)\s*(/?)\s*(?:\|?>|\]|&gt;)", re.IGNORECASE)
# So many characters at the document's ends must be found in the copy to tell it from what stands around it.
_ANCHOR = 24
# After these a sentence is over without white space.
_FULL_STOPS = "。！？"


@dataclass(frozen=True)
class Rationale:
    """A rationale (or marker) found in an annotated copy.

    start: the character of the document before which it belongs: never white space, so that white space stays
        with the preceding text. None exactly where the outcome is not a usable one.
    """

    text: str
    start: int | None
    outcome: RationaleOutcome


@dataclass(frozen=True)
class Parsed:
    """An annotated copy, read back.

    similarity: 1 - edit distance / length of the longer, of document and copy without rationales and white
        space (arXiv 2410.01044).
    """

    outcome: DocumentOutcome
    similarity: float
    rationales: tuple[Rationale, ...]

    @property
    def faithful(self) -> bool:
        return self.outcome in FAITHFUL

    @property
    def placed(self) -> tuple[tuple[int, str], ...]:
        """Start and text of the usable rationales, by increasing start."""
        return tuple((r.start, r.text) for r in self.rationales if r.start is not None)


def parse(document: str, output: str, min_similarity: float = 0.9) -> Parsed:
    """Reads `output`, a model's annotated copy of `document`. Never raises: what went wrong is an outcome."""
    if _MARKER.search(document):
        return Parsed("marked_document", 0.0, ())
    original = _squeeze(document)
    copy, found = _take_out_rationales(output, original)
    if not copy:
        return Parsed("empty", 0.0, _unfaithful(found))

    begin = 0
    end = len(copy)
    similarity = Levenshtein.normalized_similarity(original, copy)
    if similarity < 1:
        inner_begin, inner_end = _without_surroundings(original, copy)
        inner_similarity = Levenshtein.normalized_similarity(original, copy[inner_begin:inner_end])
        if inner_similarity > similarity:
            begin = inner_begin
            end = inner_end
            similarity = inner_similarity

    if similarity < min_similarity:
        outcome = "truncated" if _stops_early(original, copy, min_similarity) else "changed"
        return Parsed(outcome, similarity, _unfaithful(found))
    if not found:
        outcome = "unannotated"
    elif end - begin < len(copy):
        outcome = "trimmed"
    else:
        outcome = "exact" if similarity == 1 else "near"

    opcodes = list(Levenshtein.opcodes(original, copy[begin:end]))
    char_of = [i for i, char in enumerate(document) if not char.isspace()]
    placed = [
        _place(item, document, char_of, _locate(opcodes, min(max(item.place, begin), end) - begin))
        for item in found
    ]
    return Parsed(outcome, similarity, _drop_shadowed(placed))


def read_insertion(insertion: Insertion) -> list[list[Rationale]]:
    """What was sampled for each place of a document, with the outcomes that rationales of a copy have."""
    original = _squeeze(insertion.document.text)
    return [_read_candidates(place, original) for place in insertion.places]


def _read_candidates(place: SampledPlace, original: str) -> list[Rationale]:
    found = []
    for candidate in place.candidates:
        text = candidate.text.strip()
        outcome: RationaleOutcome = "clean"
        if candidate.finish == "length":
            outcome = "unclosed"
        elif not text:
            outcome = "empty"
        elif _MARKER.search(text):
            outcome = "nested"
        elif _squeeze(text) in original:
            outcome = "copied"
        elif any(text == other.text for other in found):
            outcome = "repeated"
        found.append(Rationale(text, place.start if outcome == "clean" else None, outcome))
    return found


@dataclass(frozen=True)
class _Found:
    """A rationale and its place: the number of characters of the copy, white space not counted, before it."""

    text: str
    place: int
    outcome: RationaleOutcome


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _take_out_rationales(output: str, original: str) -> tuple[str, list[_Found]]:
    """The copy without rationales and white space, and what was taken out.

    `original` is the document without white space.
    """
    markers = list(_MARKER.finditer(output))
    copy = ""
    found = []
    cursor = i = 0
    while i < len(markers):
        copy += _squeeze(output[cursor : markers[i].start()])
        text, cursor, used, outcome = _read_rationale(output, markers[i : i + 4], original)
        if outcome in USABLE and not text:
            outcome = "empty"
        elif outcome in USABLE and _squeeze(text) in original:
            outcome = "copied"
        found.append(_Found(text, len(copy), outcome))
        i += used
    return copy + _squeeze(output[cursor:]), found


def _read_rationale(
    output: str, markers: Sequence[re.Match[str]], original: str
) -> tuple[str, int, int, RationaleOutcome]:
    """The rationale at the first of `markers`: its text, where the copy goes on, markers used up, outcome.

    Where nothing says how far a rationale reaches only its marker is taken out: its text then counts as a
    change of the copy, which is safer than losing text of the document to it.
    """
    here = markers[0]
    if _closes(here, inside=False):
        return "", here.end(), 1, "stray"
    if len(markers) > 1 and _closes(markers[1], inside=True):
        close = markers[1]
        clean = here.group() == "<BOT>" and close.group() == "<EOT>"
        text = output[here.end() : close.start()].strip()
        return text, close.end(), 2, "clean" if clean else "altered"

    segment = output[here.end() : markers[1].start() if len(markers) > 1 else len(output)]
    line, line_break, _ = segment.lstrip().partition("\n")
    if line_break and _squeeze(line) not in original:
        line_end = here.end() + len(segment) - len(segment.lstrip()) + len(line)
        return line.strip(), line_end, 1, "line_end"
    if len(markers) == 4 and _closes(markers[2], inside=True) and _closes(markers[3], inside=True):
        return output[here.end() : markers[3].start()].strip(), markers[3].end(), 4, "nested"
    return "", here.end(), 1, "unclosed"


def _closes(marker: re.Match[str], inside: bool) -> bool:
    slash_before, name, slash_after = marker.groups()
    return name.upper() == "EOT" or bool(slash_before) or (inside and bool(slash_after))


def _without_surroundings(original: str, copy: str) -> tuple[int, int]:
    """The span of the copy between the document's first and last characters, where these are found."""
    begin = max(copy.find(original[:_ANCHOR]), 0)
    tail = original[-_ANCHOR:]
    end = copy.rfind(tail, begin)
    return begin, len(copy) if end < 0 else end + len(tail)


def _stops_early(original: str, copy: str, min_similarity: float) -> bool:
    """Whether the copy is faithful as far as it goes; other short copies left something out on the way."""
    so_far = Levenshtein.normalized_similarity(original[: len(copy)], copy)
    return len(copy) < len(original) and so_far >= min_similarity and copy[-4:] != original[-4:]


def _locate(opcodes: Iterable[Opcode], place: int) -> int | None:
    """The document's place for a place of the copy; None where the document's text at it is gone or changed.

    Such a rationale has mostly swallowed the text it should have led to.
    """
    located = None
    for op in opcodes:
        if op.dest_start <= place <= op.dest_end:
            if op.tag in ("delete", "replace"):
                return None
            located = op.src_start + (place - op.dest_start if op.tag == "equal" else 0)
    return located


def _place(item: _Found, document: str, char_of: Sequence[int], place: int | None) -> Rationale:
    if item.outcome not in USABLE:
        return Rationale(item.text, None, item.outcome)
    if place is None:
        return Rationale(item.text, None, "at_change")
    if place == 0:
        return Rationale(item.text, None, "no_preceding")
    if place == len(char_of):
        return Rationale(item.text, None, "no_following")
    start = char_of[place]
    before = document[start - 1]
    if not before.isspace() and before not in _FULL_STOPS:
        return Rationale(item.text, None, "inside_word")
    return Rationale(item.text, start, item.outcome)


def _drop_shadowed(rationales: list[Rationale]) -> tuple[Rationale, ...]:
    """Of usable rationales at one place only the last has a following text."""
    last_at = {r.start: i for i, r in enumerate(rationales) if r.start is not None}
    return tuple(
        r if r.start is None or last_at[r.start] == i else replace(r, start=None, outcome="no_following")
        for i, r in enumerate(rationales)
    )


def _unfaithful(found: Sequence[_Found]) -> tuple[Rationale, ...]:
    return tuple(Rationale(item.text, None, "unfaithful") for item in found)
