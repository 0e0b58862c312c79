"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school word problems whose answer is one number.

Answers are compared as exact fractions (`numbers.py`). What cannot be read as one number stays unanswered.
"""

import re
from fractions import Fraction
from pathlib import Path

from rationalyst_jax.files.rows import filled_field, id_field, read_rows
from rationalyst_jax.tasks.numbers import SCALES, any_of, last_number, number, written
from rationalyst_jax.tasks.question import Question

# Where a model that does not stop goes on with a question of its own, or another turn of the chat.
RUN_ON = re.compile(
    r"""<\|[a-z_]+\|> | </s> | <end_of_turn>
      | (?: ^ | (?<=[.!?:>*0-9])[ \t] )
        [#>*_ \t]{0,12}
        (?:(?:Next|New|Another|Follow-?up)\s)?
        (?:[Qq]uestion|QUESTION|Q|[Pp]roblem|PROBLEM|Exercise|Instruction|Human|User|user)
        (?:\ ?\#?[0-9]{1,3})?
        [*_]{0,3} (?: : | (?<=[0-9])\.(?=\s) | [ \t]{0,3}$ )""",
    re.VERBOSE | re.MULTILINE,
)

# What opens a statement of the answer. A bare "Answer:" does not: documents open their reasoning with it.
# "The answer is correct" states none: it speaks of one that was stated.
STATEMENT = re.compile(
    r"""(?P<hashes>\#\#\#\#)
      | (?P<boxed>\\boxed\s*\{)
      | (?: \banswer\s+is\b | \bfinal\s+answer\s*: )
        (?: [\s:,*_]*+ \b(?: actually | also | clearly | exactly | hence | indeed | just | now | only | simply
                           | still | then | therefore | thus | equal\s+to | a\s+total\s+of )\b ,?+ )*+
        (?! [\s:*_]*+ (?: consistent | correct | plausible | reasonable | right | valid | verified )\b )
        [\s:*_]*+""",
    re.VERBOSE | re.IGNORECASE,
)
HEADING = re.compile(r"[\s*_]*+[0-9]++[*_\s]*+[-.):][*_]*+\s++[*_]*+[^\W\d_]")  # as in "#### 1. The eggs"
SCALE_AFTER_BOX = re.compile(rf"[\s$*\\)\]]*+({any_of(SCALES)})\b")


def read(path: Path) -> list[Question]:
    """Questions of a GSM8K file: JSONL rows {"question", "answer"}, the answer ending "#### n".

    A row without an "id" gets the file's name and its line number. Raises ValueError naming file and line for
    a row that is not such an object, has no gold number, or repeats an id.
    """
    questions: dict[str, Question] = {}
    for place, row in read_rows(path):
        name = id_field(row, "id", place, default=f"{path.stem}-{place.rpartition(':')[2]}")
        if name in questions:
            raise ValueError(f"{place}: id {name!r} is there twice")
        _, hashes, gold = filled_field(row, "answer", place).rpartition("####")
        value = number(gold) if hashes else None
        if value is None:
            raise ValueError(f"{place}: 'answer' must end in '#### number', found {gold.strip()[-60:]!r}")
        questions[name] = Question(name, filled_field(row, "question", place), written(value))
    return list(questions.values())


def extract(text: str) -> str | None:
    """The strict reading: the number a model states as its answer, written canonically, or None.

    Statements are "#### n", "the answer is n", "final answer: n" and "\\boxed{n}". The last one counts, even
    where it holds no number; only a "####" line that is no number is taken for a heading and passed over.
    `text` is one step or a whole solution; what follows after it (`solution`) is not read.
    """
    text = solution(text)
    end = len(text)
    for statement in reversed(list(STATEMENT.finditer(text))):
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


def solution(text: str) -> str:
    """The text up to the first question that the model asks itself, and up to the end of its turn.

    A text may open with "Question:": that one is the question asked, and stays.
    """
    for cut in RUN_ON.finditer(text):
        if before := text[: cut.start()].strip():
            return before
    return text


def _stated(statement: re.Match[str], rest: str) -> Fraction | None:
    """The number of a statement, with `rest` what follows its opening."""
    if statement["boxed"]:
        inside = braced(rest)
        scale = SCALE_AFTER_BOX.match(rest, len(inside) + 1)
        return number(f"{inside} {scale[1]}" if scale else inside)
    line = rest.partition("\n")[0]
    return None if statement["hashes"] and HEADING.match(line) else number(line)


def braced(text: str) -> str:
    """Text up to the brace that closes the one already open; empty where it never closes."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:place]
    return ""
