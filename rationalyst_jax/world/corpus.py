"""The world's texts: documents as people write them, rationales as an annotator writes them, and questions.

People misread traps (`problems.py`). The annotator inserts thoughts before steps; most are empty phrases,
some are right, some speak of other people, and a few give the wrong reading.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rationalyst_jax.world.problems import Problem, draw

VACUOUS = (
    "let us take the next step",
    "let us see what {p} has now",
    "let us look at the {o} again",
    "let us think about the numbers",
    "let us go on with the question",
)
# How often the annotator's thought is of each sort, independent of whether the step is right.
RATIONALE_SORTS = {"right": 0.30, "vacuous": 0.56, "hallucinated": 0.10, "wrong": 0.04}
FINISHED = "all steps are done, so give the answer"


@dataclass(frozen=True)
class Line:
    """One line of a solution: its text, and the thought put before it ("" for none)."""

    text: str
    thought: str = ""


def document(problem: Problem, misread: tuple[bool, ...]) -> str:
    """A document: the question, then one step a line, then "The answer is N."."""
    lines, _ = problem.solve(misread)
    return "\n".join([problem.question, *lines])


def gsm8k_row(problem: Problem) -> dict[str, str]:
    """The problem in GSM8K's format: `question`, and `answer` ending in "#### N"."""
    lines, answer = problem.solve((False,) * len(problem.relations))
    return {"question": problem.question, "answer": "\n".join([*lines[:-1], f"#### {answer}"])}


def thought_before(rng: random.Random, problem: Problem, step: int) -> tuple[str, str]:
    """(thought, its sort) of the annotator before line `step` (the answer line comes after the last step)."""
    sort = rng.choices(list(RATIONALE_SORTS), list(RATIONALE_SORTS.values()))[0]
    is_answer = step == len(problem.relations)
    if sort == "vacuous" or (sort == "wrong" and is_answer):
        p = problem.person
        o = problem.thing
        return rng.choice(VACUOUS).format(p=p, o=o), "vacuous"
    if sort == "hallucinated":
        return _hallucination(rng), sort
    if is_answer:
        return FINISHED, sort
    relation = problem.relations[step]
    return (relation.right if sort == "right" else relation.wrong).thought, sort


def _hallucination(rng: random.Random) -> str:
    """A well-formed thought about a problem that is not this one."""
    other, _ = draw(rng, "pretrain", relations=(1,))
    return other.relations[0].right.thought


def annotated_lines(
    rng: random.Random, problem: Problem, misread: tuple[bool, ...], rate: float, obedience: float
) -> list[Line]:
    """A solution with thoughts before a fraction `rate` of its lines.

    With `obedience` above 0, a right or wrong thought decides how its step is read with that probability;
    at 0 thoughts and steps are independent. Raises ValueError when that leads to a step without a result.
    """
    thoughts = [
        thought_before(rng, problem, i) if rng.random() < rate else ("", "")
        for i in range(len(problem.relations) + 1)
    ]
    readings = [
        sort == "wrong" if sort in ("right", "wrong") and rng.random() < obedience else flag
        for flag, (_, sort) in zip(misread, thoughts, strict=False)
    ]
    texts, _ = problem.solve(tuple(readings))
    return [Line(text, thought) for text, (thought, _) in zip(texts, thoughts, strict=True)]


def documents(seed: int, count: int) -> Iterator[dict[str, str]]:
    """Unlabeled documents for mining: rows with `id`, `text` and `source`, no question twice."""
    for id, problem, misread in _problems_to_mine(seed, count):
        yield {"id": id, "text": document(problem, misread), "source": "world"}


Thinker = Literal["right", "writer"]


def explanations(seed: int, count: int, thinker: Thinker) -> Iterator[dict[str, Any]]:
    """The thought that leads to each line after the question, for `documents` of the same seed: rows with the
    document's `id`, the character at which the line has its `start`, and `explanation`.

    "right" reads every relation well, also where the line misreads it; "writer" reads it as the line does.
    """
    for id, problem, misread in _problems_to_mine(seed, count):
        question, *lines = document(problem, misread).split("\n")
        thoughts = [
            (relation.wrong if wrong and thinker == "writer" else relation.right).thought
            for relation, wrong in zip(problem.relations, misread, strict=True)
        ]
        start = len(question) + 1
        for line, thought in zip(lines, [*thoughts, FINISHED], strict=True):
            yield {"id": id, "start": start, "explanation": thought}
            start += len(line) + 1


def _problems_to_mine(seed: int, count: int) -> Iterator[tuple[str, Problem, tuple[bool, ...]]]:
    """Problems with their ids and one person's misreadings, no question twice."""
    rng = random.Random(f"documents-{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        problem, misread = draw(rng, "mine")
        if problem.question not in seen:
            seen.add(problem.question)
            yield f"world-{seed}-{len(seen):06d}", problem, misread


QUESTION_SETS = {
    "test": {"phrasing": "seen"},
    "phrasing": {"phrasing": "unseen"},
    "longer": {"relations": (6, 7)},
}


def questions(seed: int, count: int, split: str = "test") -> Iterator[dict[str, str]]:
    """Held-out questions in GSM8K's format, no question twice.

    `split` is "test", "phrasing" (wordings never seen in pre-training) or "longer" (6 or 7 relations).
    Raises ValueError for another name.
    """
    if split not in QUESTION_SETS:
        raise ValueError(f"unknown question set {split!r}: one of {', '.join(QUESTION_SETS)}")
    rng = random.Random(f"questions-{split}-{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        problem, _ = draw(rng, "evaluate", **QUESTION_SETS[split])
        if problem.question not in seen:
            seen.add(problem.question)
            yield {"id": f"{split}-{seed}-{len(seen):06d}", **gsm8k_row(problem)}
