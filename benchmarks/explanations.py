"""Explanations that people or models wrote for questions, as rationales that `rationalyst inspect` reads.

An explanation is cut into sentences. Each is a rationale for the next one, and the last for the statement of
the answer. A task's rows have them: ECQA's training rows, MMLU-Pro's validation rows, solutions of GSM8K.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import get_args

from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.mine.places import find_places
from rationalyst_jax.mine.triples import Triple
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.names import TaskName
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.sources import read_questions
from rationalyst_jax.tasks.task import Task


def explained(task: Task, question: Question) -> Iterator[Triple]:
    """The sentences of a question's explanation, each with the text before it and the sentence after it."""
    opening = f"Question: {question.asked}\nAnswer: "
    text = opening + " ".join(task.worked(question).split())
    inner = [place for place in find_places(text, "sentence") if place > len(opening)]
    ends = [*inner, len(text)] if question.solution else []
    start = len(opening)
    for index, (end, next_end) in enumerate(pairwise(ends)):
        written = text[start:end].strip()
        yield Triple(question.id, task.name, index, end, next_end, text[:start], written, text[end:next_end])
        start = end


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=get_args(TaskName), required=True)
    parser.add_argument("--questions", type=Path, required=True, help="the task's rows, with explanations")
    parser.add_argument("--limit", type=int, help="so many questions, the first ones")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    options = parser.parse_args()
    task = task_named(options.task)
    questions = read_questions(task, options.questions)[: options.limit]
    triples = [triple for question in questions for triple in explained(task, question)]
    write_rows(options.out, map(asdict, triples))
    print(f"{len(triples)} sentences of {len(questions)} questions are in {options.out}")


if __name__ == "__main__":
    main()
