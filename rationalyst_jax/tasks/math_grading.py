"""Grading answers of MATH: by their writing and as exact numbers, by algebra only where those can't say."""

from collections.abc import Sequence
from importlib import import_module

from rationalyst_jax.tasks import math_answers
from rationalyst_jax.tasks.killable import ItemLimits, each
from rationalyst_jax.tasks.latex import plain
from rationalyst_jax.tasks.question import Question, Verdict

ALGEBRA = "rationalyst_jax.tasks.math_algebra"
LIMITS = ItemLimits(seconds=5)
VERDICTS: dict[bool | None, Verdict] = {True: "right", False: "wrong", None: "undecided"}


def grade(answers: Sequence[tuple[str | None, Question]], limits: ItemLimits = LIMITS) -> list[Verdict]:
    """The verdicts of answers (None: unanswered) to questions, in order.

    Undecided is what takes longer or more memory than the limits, breaks its process, has no known gold, or
    where two methods of algebra disagree. Worker processes start only where an answer needs algebra, and end
    with the call. A pair of answer and gold is compared once.
    """
    pairs = [
        None if answer is None else (plain(answer), plain(question.gold)) for answer, question in answers
    ]
    known = {pair: _without_algebra(*pair) for pair in dict.fromkeys(pairs) if pair is not None}
    open_pairs = [pair for pair, verdict in known.items() if verdict is None and pair[1]]
    if open_pairs:
        known.update(zip(open_pairs, each(_by_algebra, open_pairs, limits, preload=ALGEBRA), strict=True))
    return ["unanswered" if pair is None else VERDICTS[known[pair]] for pair in pairs]


def _without_algebra(answer: str, gold: str) -> bool | None:
    if not gold:
        return None
    if answer == gold:
        return True
    return math_answers.same(math_answers.read(answer), math_answers.read(gold), math_answers.exactly)


def _by_algebra(pair: tuple[str, str]) -> bool | None:
    """In a worker: nothing else may import SymPy."""
    return import_module(ALGEBRA).compare(pair)
