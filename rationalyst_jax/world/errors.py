"""Solutions of the world's problems with a first wrong step at a known place, in ProcessBench's format.

Each problem has two solutions: a right one, and one that goes wrong once as people do and then goes on from
the wrong number. So no score can tell the two by the problem.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from rationalyst_jax.world.problems import Problem, Reading, draw

# How a solution goes wrong, and how often: it misreads a relation, as the writers of the world's documents
# do; it takes another number of the question; it miscalculates.
SORTS = {"misread": 0.6, "number": 0.2, "slip": 0.2}
SLIPS = (-10, -2, -1, 1, 2, 10)

Flawed = tuple[list[str], int]  # lines of a solution, and its answer


def step_errors(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """`count` solutions of held-out problems, two of each problem: rows as ProcessBench has them.

    `generator` says how the wrong one of the two goes wrong. The label is the first step that differs from
    the right solution; -1 for the right one.
    """
    return islice(_solutions(seed), count)


def _solutions(seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"errors-{seed}")
    seen: set[str] = set()
    while True:
        sort = rng.choices(list(SORTS), list(SORTS.values()))[0]
        problem, flawed = _drawn(rng, sort, seen)
        seen.add(problem.question)
        right = problem.solve((False,) * len(problem.relations))
        lines = zip(right[0], flawed[0], strict=True)
        first = next(place for place, (one, other) in enumerate(lines) if one != other)
        for name, (steps, answer), label in (("right", right, -1), ("wrong", flawed, first)):
            yield {
                "id": f"errors-{seed}-{len(seen):06d}-{name}",
                "generator": f"world: {sort}",
                "problem": problem.question,
                "steps": steps,
                "final_answer_correct": answer == problem.answer,
                "label": label,
            }


def _drawn(rng: random.Random, sort: str, seen: set[str]) -> tuple[Problem, Flawed]:
    """A problem not seen before that one can get wrong like this, and the flawed solution."""
    while True:
        problem, misread = draw(rng, "evaluate")
        if problem.question not in seen:
            ways = WAYS[sort](problem, misread)
            if ways:
                return problem, rng.choice(ways)


def _misread(problem: Problem, misread: tuple[bool, ...]) -> list[Flawed]:
    """What the person wrote who misreads these relations; the first of them is the first error."""
    return [problem.solve(misread)] if any(misread) else []


def _other_numbers(problem: Problem, _: tuple[bool, ...]) -> list[Flawed]:
    """Each way to take a number of the question for another in one step, and not as who misreads it does."""
    numbers = sorted({int(number) for number in re.findall(r"\d+", problem.question)})
    ways = []
    for place, relation in enumerate(problem.relations):
        for number in numbers:
            other = replace(relation.right, operand=number)
            as_people_read = {(way.op, way.operand) for way in (relation.right, relation.wrong)}
            if (other.op, number) not in as_people_read:
                readings = [r.right for r in problem.relations]
                readings[place] = other
                ways += _written(problem, readings)
    right = problem.solve((False,) * len(problem.relations))
    return [way for way in ways if way != right]  # the other person's value may be a number of the question


def _slips(problem: Problem, _: tuple[bool, ...]) -> list[Flawed]:
    """Each way to miscalculate one step."""
    right = [relation.right for relation in problem.relations]
    ways = []
    for place in range(len(right)):
        for slip in SLIPS:
            ways += _written(problem, right, (place, slip))
    return ways


def _written(
    problem: Problem, readings: Sequence[Reading], slip: tuple[int, int] | None = None
) -> list[Flawed]:
    """What is written; nothing where a step has no result."""
    try:
        return [problem.write(readings, slip)]
    except ValueError:
        return []


WAYS: dict[str, Callable[[Problem, tuple[bool, ...]], list[Flawed]]] = {
    "misread": _misread,
    "number": _other_numbers,
    "slip": _slips,
}
