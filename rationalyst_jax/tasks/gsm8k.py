"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school word problems whose answer is one number.

Numbers are exact fractions throughout: "3.5" is not 3, "0.1" is one tenth, and no float rounds an answer
into a right one. What cannot be read as one number stays unanswered; nothing is guessed.
"""

import re
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

from rationalyst_jax.files.rows import filled_field, read_rows
from rationalyst_jax.tasks.question import Question

MAX_DIGITS = 40  # a longer number is a model caught in a loop

# What opens a statement of the answer. A bare "Answer:" does not: documents open their reasoning with it.
STATEMENT = re.compile(
    r"(?P<hashes>####)|(?P<boxed>\\boxed\s*\{)|\banswer\s+is\b|\bfinal\s+answer\s*:", re.IGNORECASE
)

NUMBER = re.compile(
    r"""[\s:*_`"'~(\[{$€£¥]*
        (?P<sign>[-+]?)[$€£¥]*
        (?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/\s*[0-9]))?                          # 2 1/2
        (?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)
        (?:\s*/\s*(?P<denominator>[0-9]+))?
        # Not the head of something else: 1,00  3:30  1e5  2²  1½  2\pi
        (?![.,:]?[0-9]|e[-+]?[0-9]|[²³¼-¾⅐-⅞]|\\[a-z])
        (?:\s*(?P<scale>hundred|thousand|million|billion)\b)?""",
    re.VERBOSE | re.IGNORECASE,
)
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}

# A second number tied to the first, over its unit: "9 * 2", "5 red apples and 3 pears", "10% of 50".
JOINED = re.compile(
    r"""[)\]}*_`%]*\s*(?:[a-z]+(?:\s+[a-z]+){0,4}\s*)?
        (?:(?P<operator>[-+*/×÷^=]|(?<![a-z])x)|,|\b(?:and|or|to)\b|%\s*of\b)
        \s*[($€£¥*]*[-+]?\.?[0-9]""",
    re.VERBOSE | re.IGNORECASE,
)

LATEX = (
    (re.compile(r"(?<=[0-9])(?=\\[dt]?frac)"), " "),  # a mixed number
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot)\b"), "*"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\\[,!;: ()\[\]]"), ""),  # spaces and math brackets
)
# The minus sign, en dash, and small and full-width hyphens.
MINUS_SIGNS = str.maketrans(dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-"))
SENTENCE_END = re.compile(r"[.!?;][*_`\"')$]*(?=\s|$)")


def read(path: Path) -> list[Question]:
    """Questions of a GSM8K file: JSONL rows {"question", "answer"}, the answer ending "#### n".

    A row without an "id" gets the file's name and its line number. Raises ValueError naming file and line for
    a row that is not such an object, has no gold number, or repeats an id.
    """
    questions: dict[str, Question] = {}
    for place, row in read_rows(path):
        name = filled_field(row, "id", place) if "id" in row else f"{path.stem}-{place.rpartition(':')[2]}"
        if name in questions:
            raise ValueError(f"{place}: id {name!r} is there twice")
        _, hashes, gold = filled_field(row, "answer", place).rpartition("####")
        value = number(gold) if hashes else None
        if value is None:
            raise ValueError(f"{place}: 'answer' must end in '#### number', found {gold.strip()[-60:]!r}")
        questions[name] = Question(name, filled_field(row, "question", place), written(value))
    return list(questions.values())


def extract(text: str) -> str | None:
    """The number a model states as its answer, written canonically, or None where it states none.

    Statements are "#### n", "the answer is n", "final answer: n" and "\\boxed{n}". The last one counts, even
    where it holds no number; only a "####" line that is no number is taken for a heading and passed over.
    """
    for statement in reversed(list(STATEMENT.finditer(text))):
        rest = text[statement.end() :]
        if statement["hashes"]:
            line = rest.partition("\n")[0].partition("####")[0]
            after = "".join(SENTENCE_END.split(line)[1:]).strip()  # as in the heading "#### 1. The eggs"
            value = None if after else number(line)
            if value is None:
                continue
        else:
            value = number(
                braced(rest) if statement["boxed"] else rest.lstrip(" \t\r\n:*_").partition("\n")[0]
            )
        return None if value is None else written(value)
    return None


def correct(answer: str | None, gold: str) -> bool:
    """Whether an extracted answer is exactly the gold number; unanswered is not correct."""
    value = None if answer is None else number(answer)
    return value is not None and value == number(gold)


def number(clause: str) -> Fraction | None:
    """The one number a clause opens with, after markup and currency and before its unit, or None.

    A percentage is its number ("50%" is 50, as in GSM8K's gold answers). An equation is its right-hand side.
    """
    clause = clause.translate(MINUS_SIGNS)
    for pattern, replacement in LATEX:
        clause = pattern.sub(replacement, clause)
    clause = SENTENCE_END.split(clause, maxsplit=1)[0]
    match = NUMBER.match(clause)
    if match is None or digit_count(match[0]) > MAX_DIGITS:
        return None
    if joined := JOINED.match(clause, match.end()):
        left, equals, right = clause.rpartition("=")
        return number(right) if joined["operator"] and equals and left else None
    denominator = int(match["denominator"] or 1)
    if denominator == 0:
        return None
    size = int(match["whole"] or 0) + Fraction(match["digits"].replace(",", "")) / denominator
    size *= SCALES[match["scale"].lower()] if match["scale"] else 1
    value = -size if match["sign"] == "-" else size
    return value if digit_count(written(value)) <= MAX_DIGITS else None  # so what is written can be read


def digit_count(text: str) -> int:
    return sum(map(str.isdigit, text))


def written(value: Fraction) -> str:
    """A number's one way of being written, so that equal answers are equal texts: "-3", "0.5", "1/3"."""
    if 10**MAX_DIGITS % value.denominator:
        return str(value)
    with localcontext(prec=3 * MAX_DIGITS):  # enough for every digit on either side of the point
        exact = format(Decimal(value.numerator) / value.denominator, "f")
    return exact.rstrip("0").rstrip(".") if "." in exact else exact


def braced(text: str) -> str:
    """Text up to the brace that closes the one already open; empty where it never closes."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:place]
    return ""
