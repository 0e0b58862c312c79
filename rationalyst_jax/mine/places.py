"""Where in a document a thought may stand: before a line, a sentence, a clause.

A place is the offset of a character. It is never white space and has text before it, so white space stays
with the preceding text, as in a copy that is read back (`mine/parse.py`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

PlaceKind = Literal["line", "sentence", "clause"]

# After these a sentence or a clause is over where white space follows, and after the wide ones in any case.
_SENTENCE = r".!?…"
_WIDE_SENTENCE = r"。！？"
_CLAUSE = _SENTENCE + r",;:–—"
_WIDE_CLAUSE = _WIDE_SENTENCE + r"，、；："
_CLOSING = r"[\"'”’»)\]」』）]*"


def _after(marks: str, wide_marks: str) -> re.Pattern[str]:
    return re.compile(rf"(?:[{marks}]{_CLOSING}\s|[{wide_marks}]{_CLOSING}|\n)\s*(?=\S)")


# Each kind has the places of the one before it, and more.
_BEFORE: Mapping[PlaceKind, re.Pattern[str]] = {
    "line": re.compile(r"\n\s*(?=\S)"),
    "sentence": _after(_SENTENCE, _WIDE_SENTENCE),
    "clause": _after(_CLAUSE, _WIDE_CLAUSE),
}


def find_places(text: str, kind: PlaceKind) -> list[int]:
    """The places of a text before which something of that kind begins, ascending.

    Marks alone decide: after "Dr. " a sentence is taken to begin. Such a place costs a rationale, no more.
    """
    begin = len(text) - len(text.lstrip())
    end = len(text.rstrip())
    return [found.end() for found in _BEFORE[kind].finditer(text, begin, end)]


def largest(values: Sequence[float], most: int) -> list[int]:
    """The indices of the `most` largest values, ascending; of equal ones the first."""
    return sorted(sorted(range(len(values)), key=lambda i: -values[i])[:most])
