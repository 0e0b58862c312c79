"""MATH (Hendrycks et al. 2021, arXiv 2103.03874): competition problems whose answer is LaTeX in a box.

MATH-500 (Lightman et al. 2023, arXiv 2305.20050) is 500 of its test rows. Answers are written plainly
(`latex.py`), taken apart (`math_answers.py`), and compared by algebra only where that is needed
(`math_grading.py`).
"""

import re
from collections import deque
from dataclasses import replace

from rationalyst_jax.files.rows import Row, filled_field, id_field, text_field
from rationalyst_jax.tasks.latex import MAX_LENGTH, plain
from rationalyst_jax.tasks.math_grading import grade
from rationalyst_jax.tasks.numbers import number, written
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.solution import HEADING, braced, solution, statements
from rationalyst_jax.tasks.task import Paper, Task

BOX = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])\s*+(?P<brace>\{)?(?(brace)|(?P<bare>[0-9A-Za-z]|\\[A-Za-z]++)?)"
)
BOX_OPENING = r"\\(?:boxed|fbox)\s*+\{?+\}?+"
MATH_SPAN = re.compile(
    r"\$\$(?P<display>[^$]{1,1000}+)\$\$ | (?<!\\)\$(?P<inline>(?:[^$\\]|\\.){1,1000}+)\$"
    r" | \\\((?P<round>(?:[^\\]|\\(?!\))){1,1000}+)\\\) | \\\[(?P<square>(?:[^\\]|\\(?!\])){1,1000}+)\\\]",
    re.VERBOSE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![0-9.])-?[0-9]++(?:,[0-9]{3})*+(?:\.[0-9]++)?+(?:/[0-9]++)?+")
# Where the answer of a statement in prose ends.
STATEMENT_END = re.compile(
    r"[.!?;,]?[*_`\"')]*+(?:\n|$)|[.!?;][*_`\"')]*+\s|,?\s(?:because|since|as|so|which|where|when|I hope)\b"
)
LONGEST_CLAUSE = 60  # characters of an answer in prose that is neither math nor a number
LEVEL = re.compile(r"(?:Level )?([1-5?])")


def question(row: Row, place: str, default_id: str) -> Question:
    """A row {"problem", "solution", "level", "type" or "subject", perhaps "answer" and "unique_id"} of MATH.

    The gold answer is "answer" (null: not there), else what stands in the last box of the solution, and may
    be empty: two rows of the training split have an empty box. Raises ValueError naming the place for a row
    that is not of that form.
    """
    answered = row.get("answer") is not None
    worked = text_field(row, "solution", place, default="" if answered else None)
    gold = filled_field(row, "answer", place) if answered else _last_box(worked) or ""
    level = row.get("level", "?")
    found = LEVEL.fullmatch(str(level))
    if found is None or isinstance(level, float):
        raise ValueError(f"{place}: 'level' must be from 1 to 5, found {level!r:.60}")
    name = id_field(row, "unique_id", place, default=default_id)
    split = name.partition("/")[0]
    return Question(
        name,
        filled_field(row, "problem", place),
        gold.strip(),
        subject=text_field(row, "subject" if "subject" in row else "type", place, default=""),
        level=0 if found[1] == "?" else int(found[1]),
        solution=worked.strip(),
        split=split if split in ("train", "test") else "",
    )


def extract(text: str) -> str | None:
    """The strict reading: the answer a model states, in its plain way of writing, or None.

    Statements are "\\boxed{x}", "\\fbox{x}", "the answer is x", "final answer: x" and "#### x". The last one
    counts; a box that is empty or never closes states nothing. What follows after the solution is not read.
    """
    text = solution(text)
    box = _last(BOX, text)
    boxed_to = -1 if box is None else box.start()
    for statement in reversed(statements(text)):
        if statement["boxed"] or statement.end() <= boxed_to:
            continue
        if statement["hashes"] and HEADING.match(text, statement.end()):
            continue
        stated = _clause(text[statement.end() :], words=box is None and not statement["hashes"])
        if stated is not None:
            return stated
    return None if box is None else _readable(_boxed(box, text))


def flexible(text: str) -> str | None:
    """The flexible reading: the last box that holds something, else the last math or number, or None."""
    text = solution(text)
    for box in reversed(list(BOX.finditer(text))):
        if (answer := _readable(_boxed(box, text))) is not None:
            return answer
    span = _last(MATH_SPAN, text)
    found = _last(NUMBER, text)
    if span is not None and (found is None or found.end() <= span.end()):
        return _readable(re.sub(BOX_OPENING, "", span[span.lastgroup or 0]).rpartition("=")[2])
    return None if found is None else _readable(found[0])


def _clause(rest: str, words: bool) -> str | None:
    """The answer of a statement in prose, with `rest` what follows its opening; bare words only where
    `words`: "the answer is unique" after a box does not correct it."""
    rest = rest[: 2 * MAX_LENGTH]
    if BOX.search(rest[:MAX_LENGTH].partition("\n\n")[0]):
        return None
    if (span := MATH_SPAN.match(rest)) is not None:
        after = STATEMENT_END.split(rest[span.end() :], maxsplit=1)[0]
        whole = f"{span[span.lastgroup or 0]} {after}" if after.lstrip().startswith(("%", "\\%")) else None
        return _readable(whole or span[span.lastgroup or 0])
    clause = STATEMENT_END.split(rest, maxsplit=1)[0].strip(" *_`\"'")
    value = number(clause)
    if value is not None:
        return written(value)
    return _readable(clause) if words and len(clause) <= LONGEST_CLAUSE else None


def _last_box(text: str) -> str | None:
    box = _last(BOX, text)
    return None if box is None else _boxed(box, text)


def _boxed(box: re.Match[str], text: str) -> str:
    return braced(text[box.end() : box.end() + MAX_LENGTH + 1]) if box["brace"] else box["bare"] or ""


def _readable(latex: str) -> str | None:
    answer = plain(latex) if len(latex) <= MAX_LENGTH else ""
    return answer or None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match, in memory for one."""
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


TASK = Task(
    "math",
    title="MATH",
    question=question,
    extract=lambda text, _: extract(text),
    flexible=lambda text, _: flexible(text),
    grade=grade,
    split="test",
    size=5000,
    references=("train",),
    homepage="https://github.com/hendrycks/math",
    license="MIT",
    demonstrations="math",
    step_end="sentence",
    answer_form=r"The answer is $\boxed{{gold}}$.",
    paper=Paper(base=28.0, rationalyst=32.5, shots=5),  # the released scripts draw nine
)
MATH500 = replace(
    TASK,
    name="math500",
    title="MATH-500",
    size=500,
    homepage="https://github.com/openai/prm800k",
    paper=None,
    part_of=TASK,
)
