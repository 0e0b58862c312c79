"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school word problems whose answer is one number.

Answers are compared as exact fractions (`numbers.py`). What cannot be read as one number stays unanswered.
"""

import re
from fractions import Fraction

from rationalyst_jax.files.rows import Row, filled_field, id_field
from rationalyst_jax.tasks.numbers import ANNOTATION, SCALES, any_of, last_number, number, written
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.solution import HEADING, braced, solution, statements
from rationalyst_jax.tasks.task import Paper, Task, grade_each

SCALE_AFTER_BOX = re.compile(rf"[\s$*\\)\]]*+({any_of(SCALES)})\b")


def question(row: Row, place: str, default_id: str) -> Question:
    """A row {"question", "answer"} of GSM8K, the answer ending "#### n", as a question.

    Raises ValueError naming the place of a row that is not such an object or has no gold number.
    """
    worked, hashes, gold = filled_field(row, "answer", place).rpartition("####")
    value = number(gold) if hashes else None
    if value is None:
        raise ValueError(f"{place}: 'answer' must end in '#### number', found {gold.strip()[-60:]!r}")
    name = id_field(row, "id", place, default=default_id)
    worked = ANNOTATION.sub("", worked).strip()
    return Question(name, filled_field(row, "question", place), written(value), solution=worked)


def extract(text: str) -> str | None:
    """The strict reading: the number a model states as its answer, written canonically, or None.

    Statements are "#### n", "the answer is n" (or "would be"), "final answer: n" and "\\boxed{n}". The last
    one counts, even where it holds no number; only a "####" line that is no number is taken for a heading and
    passed over.
    `text` is one step or a whole solution; what follows after it (`solution`) is not read.
    """
    text = solution(text)
    end = len(text)
    for statement in reversed(statements(text)):
        value = _stated(statement, text[statement.end() : end])
        if value is not None or not statement["hashes"]:
            return None if value is None else written(value)
        end = statement.start()
    return None


def flexible(text: str) -> str | None:
    """The flexible reading: the last number of the solution, stated as the answer or not, or None.

    It finds more answers than the strict one, and takes wrong ones for answers: 20 in "12, not 20". Other
    harnesses report it beside theirs; like them it reads digits alone, so "1/2" ends in the number 2.
    """
    value = last_number(solution(text))
    return None if value is None else written(value)


def correct(answer: str | None, gold: str) -> bool:
    """Whether an extracted answer is exactly the gold number; unanswered is not correct."""
    value = None if answer is None else number(answer)
    return value is not None and value == number(gold)


def _stated(statement: re.Match[str], rest: str) -> Fraction | None:
    """The number of a statement, with `rest` what follows its opening."""
    if statement["boxed"]:
        inside = braced(rest)
        scale = SCALE_AFTER_BOX.match(rest, len(inside) + 1)
        return number(f"{inside} {scale[1]}" if scale else inside)
    line = rest.partition("\n")[0]
    return None if statement["hashes"] and HEADING.match(line) else number(line)


TASK = Task(
    "gsm8k",
    title="GSM8K",
    question=question,
    extract=lambda text, _: extract(text),
    flexible=lambda text, _: flexible(text),
    grade=grade_each(correct),
    split="test",
    size=1319,
    references=("train",),
    homepage="https://github.com/openai/grade-school-math",
    license="MIT",
    demonstrations="gsm8k",
    paper=Paper(base=77.6, rationalyst=81.6, shots=9),
)
