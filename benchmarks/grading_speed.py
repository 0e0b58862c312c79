"""How long 5,000 answers to MATH take to grade, on rows of MATH-500.

    python benchmarks/grading_speed.py ../shared/data/math/math500.jsonl

The answers are the questions' own golds, and the golds of other rows: ten of each question, no pair twice.
"""

import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from rationalyst_jax.tasks.math import MATH500, extract
from rationalyst_jax.tasks.question import Question


def answers(questions: list[Question], count: int = 5000) -> list[tuple[str | None, Question]]:
    """So many answers, of questions in turn: their own golds first, then those of the rows after them."""
    boxed = [extract(rf"\boxed{{{question.gold}}}") for question in questions]
    rows = len(questions)
    return [(boxed[(i + i // rows) % rows], questions[i % rows]) for i in range(count)]


def main(path: str) -> None:
    graded = answers(MATH500.read(Path(path)))
    start = time.perf_counter()
    verdicts = Counter(MATH500.grade(graded))
    wall = time.perf_counter() - start
    own = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{len(graded)} answers: {dict(verdicts)}")
    print(f"{wall:.1f} s on {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"{own.ru_utime + own.ru_stime:.1f} s of CPU in this process, the workers' own not counted")


if __name__ == "__main__":
    main(sys.argv[1])
