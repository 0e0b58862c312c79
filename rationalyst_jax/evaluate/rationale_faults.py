"""What may be wrong with a rationale, judged by its words and those around it; no model is asked.

A rationale should point to what comes next. Four faults make it useless, or make it look better than it is:
it copies the following text, leaks its result, says nothing, or repeats the preceding text. Each is measured
as a number or a list, and a fault is a stated bound on that. The filler words are English.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rationalyst_jax.tasks.numbers import CURRENCY, DIGITS, MAX_DIGITS, digit_count, written

COPIED = 5  # words in a row, which the following text has and the preceding text has not
RUN = 4  # words in a row that count as repeated
REPEATED = 0.5  # share of the rationale's words that stand in such runs of the preceding text
OWN_WORDS = 2  # words beside the filler that a rationale must have, where it has no number
# Words that say only that the text goes on: "let us think about the next step again".
FILLER = frozenset(
    """a about again ahead all also an and answer are as at be been before begin by calculate can carefully
    compute consider continue could determine do does down first figure final finally find focus following for
    forward from further get give given go going had has have here how i if in information into is it its keep
    know let let's look make may more move must need needs next now numbers of okay on one order our out
    problem proceed process question quantities reason reasoning result right see should show so solution
    solve some start statement step steps take text that the their them then there these they thing things
    think this those thus time to together try understand up us use using value values was way we we'll well
    were what when where which who will with work would writer you your""".split()
)

_WORD = re.compile(rf"{DIGITS}|[^\W\d_]+(?:['’][^\W\d_]+)*")
_NUMBER = re.compile(rf"(?<![\w.])(?P<digits>{DIGITS})")
_SIGNED = rf"[-+−]?{CURRENCY}?\s*(?P<digits>{DIGITS})"
# A calculation's right side (not the left side of the next one), or what a solution ends with.
_RESULT = re.compile(
    rf"(?:=|\#\#\#\#|(?i:\banswer\s+is):?)\s*{_SIGNED}(?!\s*[-+*/x×÷·^=–−(]\s*{CURRENCY}?[\d(])"
)
_ANSWER = re.compile(r"(?i:\banswer\s+is):?\s+(?P<text>[^.;\n]+)")
_ANSWER_LETTER = re.compile(r"(?i:\banswer(?:\s+is:?|:))\s+(?:\(([A-J])\)|([A-J])(?=[.,;)\n]|\s*$))")
_NAMED_LETTER = re.compile(r"(?i:\boption|\bchoice|\banswer(?:\s+is:?|:))\s+\(?([A-J])\b|\(([A-J])\)")
_OPTION = re.compile(r"(?:(?<=\s)|^)\(?([A-J])[.):]\s+(.+?)(?=\s+\(?[A-J][.):]\s|\n|$)", re.MULTILINE)


@dataclass(frozen=True)
class Faults:
    """What was measured of a rationale at its place.

    copied: words of its longest run that the following text has and the preceding text has not.
    leaked: results of the following text that it states: numbers after "=", final answers, option letters and
        the texts of options; none that the preceding text has already.
    new_numbers: all its numbers that the following text has and the preceding text has not: those leaked, and
        numbers that are only calculated with.
    repeated: share of its words that stand in runs of at least 4 words of the preceding text.
    own_words: its words beside the filler; a number is one.
    vacuous: it has no number, and fewer than 2 words of its own.
    """

    copied: int
    leaked: tuple[str, ...]
    new_numbers: tuple[str, ...]
    repeated: float
    own_words: int
    vacuous: bool

    @property
    def found(self) -> tuple[str, ...]:
        """The names of its faults."""
        bounds = {
            "copies": self.copied >= COPIED,
            "leaks": bool(self.leaked),
            "new_number": bool(self.new_numbers),
            "vacuous": self.vacuous,
            "repeats": self.repeated >= REPEATED,
        }
        return tuple(name for name, is_at_fault in bounds.items() if is_at_fault)


# In words, for tables: the names of `Faults.found` and what they mean.
FAULTS = {
    "copies": f"copies: {COPIED} words in a row of the following text",
    "leaks": "leaks: a result, final answer or option of the following text",
    "new_number": "new number: any number of the following text that was not there before",
    "vacuous": f"vacuous: no number, fewer than {OWN_WORDS} words beside filler",
    "repeats": f"repeats: {REPEATED:.0%} of its words in runs of {RUN} of the preceding text",
}


def measure_faults(preceding: str, rationale: str, following: str) -> Faults:
    """Measures a rationale between the text before it and the text after it."""
    before = words(preceding)
    own = words(rationale)
    after = words(following)
    has_number = any(word[-1].isdigit() for word in own)
    own_words = sum(word not in FILLER for word in own)
    return Faults(
        copied=_copied(before, own, after),
        leaked=leaked(preceding, rationale, following),
        new_numbers=tuple(sorted((numbers(rationale) & numbers(following)) - numbers(preceding))),
        repeated=_repeated(own, before),
        own_words=own_words,
        vacuous=not has_number and own_words < OWN_WORDS,
    )


def words(text: str) -> list[str]:
    """Words and numbers without case and punctuation; an apostrophe inside is a part of its word."""
    return [word.casefold().replace("’", "'") for word in _WORD.findall(text)]


def numbers(text: str) -> set[str]:
    """The numbers of a text, each in its one way of being written: 1,000 and 1000.0 are one number."""
    return set(_written(_NUMBER.finditer(text)))


def results(text: str) -> set[str]:
    """The numbers that a text works out or ends with: after "=", "####" and "the answer is"."""
    return set(_written(_RESULT.finditer(text)))


def leaked(preceding: str, rationale: str, following: str) -> tuple[str, ...]:
    """The results of `following` that `rationale` states, sorted; none of those that `preceding` has.

    A result is a number (`results`), the letter of the option that is the answer, or that option's text. Of
    an option's text it must be the only option that the rationale names: one that weighs several leaks none.
    """
    found = (numbers(rationale) & results(following)) - numbers(preceding)
    letters = _letters(_ANSWER_LETTER, following) - _letters(_ANSWER_LETTER, preceding)
    found |= letters & _letters(_NAMED_LETTER, rationale)
    options = {letter: tuple(words(text)) for letter, text in _OPTION.findall(preceding)}
    answers = {options[letter] for letter in letters if letter in options} | _answer_texts(following)
    own = words(rationale)
    named = {text for text in {*options.values(), *answers} if text and _has(own, text)}
    # "ice" is named in "ice cream": of texts that hold each other only the longest is.
    named = {text for text in named if not any(text != other and _has(other, text) for other in named)}
    if len(named) == 1 and named <= answers - _answer_texts(preceding):
        found.add(" ".join(*named))
    return tuple(sorted(found))


def _copied(before: Sequence[str], own: Sequence[str], after: Sequence[str]) -> int:
    """Words of the longest run of `own` that is in `after` and not in `before`."""
    longest = 0
    for n in range(1, len(own) + 1):
        common = set(_runs(own, n)) & set(_runs(after, n))
        if not common:
            break
        if common - set(_runs(before, n)):
            longest = n
    return longest


def _repeated(own: Sequence[str], before: Sequence[str]) -> float:
    known = set(_runs(before, RUN))
    inside = {i + k for i, run in enumerate(_runs(own, RUN)) if run in known for k in range(RUN)}
    return len(inside) / max(1, len(own))


def _runs(of: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(of[i : i + n]) for i in range(len(of) - n + 1))


def _has(text: Sequence[str], run: Sequence[str]) -> bool:
    return tuple(run) in _runs(text, len(run))


def _written(found: Iterator[re.Match[str]]) -> Iterator[str]:
    for match in found:
        if digit_count(match["digits"]) <= MAX_DIGITS:
            yield written(Fraction(match["digits"].replace(",", "")))


def _letters(pattern: re.Pattern[str], text: str) -> set[str]:
    return {first or second for first, second in pattern.findall(text)}


def _answer_texts(text: str) -> set[tuple[str, ...]]:
    """Answers that are no number and no letter, as words."""
    found = {tuple(words(answer)) for answer in _ANSWER.findall(text)}
    return {
        answer for answer in found if answer and not (len(answer) == 1 and _is_letter_or_number(answer[0]))
    }


def _is_letter_or_number(word: str) -> bool:
    return len(word) == 1 or word[-1].isdigit()
