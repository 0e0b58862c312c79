"""Step errors: does a score of steps find the first wrong one?

Of a solution the steps before the first error are right and the first error is wrong. What follows it is left
out: nobody has said whether it is right. A solution without an error has right steps alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rationalyst_jax.evaluate.ranking import (
    auroc_difference,
    auroc_interval,
    permutation_test,
    precision_interval,
)
from rationalyst_jax.evaluate.statistics import (
    Interval,
    proportion_interval,
    resampled_interval,
    times_drawn,
)

TUNED_SHARE = 0.2  # of the problems, for choosing thresholds
FEWEST = 10  # problems with an error, that a generator is measured on alone
# What is compared: does a rationale do more than that of another problem, and more than none?
PAIRS = (("implicit", "shuffled"), ("gain", "shuffled gain"), ("implicit", "likelihood"))


@dataclass(frozen=True)
class ScoredSolution:
    """The scores of a solution's steps by the scores' names: the higher, the likelier a step is right.

    problem: equal for solutions of one problem. first_error: the place of the first wrong step, or None.
    """

    problem: str
    generator: str
    first_error: int | None
    scores: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class ErrorF1:
    """ProcessBench's F1: the harmonic mean of two accuracies, on solutions with an error (its exact place was
    found) and without one (none was said). The first step with a score below `threshold` is said to be wrong.

    The threshold is tuned: the best one for the solutions of `tuned_on` problems, which are not among those
    that F1 is of.
    """

    f1: Interval
    on_errors: float
    on_right: float
    threshold: float
    tuned_on: int


@dataclass(frozen=True)
class ScoreQuality:
    """How well one score finds errors. None: there are no errors, or there is nothing else (F1: in one of
    the parts)."""

    auroc: Interval | None
    average_precision: Interval | None
    f1: ErrorF1 | None


@dataclass(frozen=True)
class ScoreComparison:
    """AUROC of one score minus that of another on the same steps, and the p-value of the permutation test."""

    difference: Interval
    p: float


@dataclass(frozen=True)
class StepErrors:
    """What the scores of a set of solutions are worth.

    steps: those that are right or the first error; errors: how many of them are one. compared: pairs of
    scores. by_generator: AUROCs by the solutions' generators and the scores' names, where there are several;
    generators with errors in few problems are left out.
    """

    problems: int
    solutions: int
    erroneous: int
    steps: int
    errors: int
    scores: Mapping[str, ScoreQuality]
    compared: Mapping[tuple[str, str], ScoreComparison]
    by_generator: Mapping[str, Mapping[str, Interval | None]]


def step_errors(solutions: Sequence[ScoredSolution], seed: int = 0) -> StepErrors:
    """All measures of solutions that have the same scores. Intervals and tests resample problems."""
    names = list(solutions[0].scores)
    items = {name: labeled_steps(solutions, name) for name in names}
    _, error_N, cluster_N = items[names[0]]
    compared = {}
    for a, b in PAIRS:
        if a in items and b in items:
            steps = items[a][0], items[b][0], error_N, cluster_N
            if difference := auroc_difference(*steps):
                compared[a, b] = ScoreComparison(difference, permutation_test(*steps, seed))
    return StepErrors(
        problems=len({solution.problem for solution in solutions}),
        solutions=len(solutions),
        erroneous=sum(solution.first_error is not None for solution in solutions),
        steps=len(error_N),
        errors=int(error_N.sum()),
        scores={
            name: ScoreQuality(
                auroc_interval(*items[name]),
                precision_interval(*items[name], seed),
                error_f1(solutions, name, seed),
            )
            for name in names
        },
        compared=compared,
        by_generator=_by_generator(solutions, names),
    )


def labeled_steps(
    solutions: Sequence[ScoredSolution], name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every step that has a label its score, whether it is an error, and its problem: each [N]."""
    scores: list[float] = []
    errors: list[bool] = []
    problems: list[str] = []
    for solution in solutions:
        own = solution.scores[name]
        labeled = own if solution.first_error is None else own[: solution.first_error + 1]
        scores += labeled
        errors += [place == solution.first_error for place in range(len(labeled))]
        problems += [solution.problem] * len(labeled)
    return np.array(scores, np.float64), np.array(errors, bool), np.array(problems)


def held_out(problem: str) -> bool:
    """Whether a problem is for choosing thresholds, by its hash alone."""
    return int.from_bytes(hashlib.sha256(problem.encode()).digest()[:4]) < TUNED_SHARE * 2**32


def error_f1(solutions: Sequence[ScoredSolution], name: str, seed: int = 0) -> ErrorF1 | None:
    """F1 at the threshold that is best on the held-out problems, on the other ones; None where either part
    lacks solutions with an error, or without."""
    tuning = [solution for solution in solutions if held_out(solution.problem)]
    others = [solution for solution in solutions if not held_out(solution.problem)]
    for part in (tuning, others):
        if len({solution.first_error is None for solution in part}) < 2:
            return None
    threshold = best_threshold(tuning, name)
    [found_S] = found(others, name, np.array([threshold]))
    error_S = np.array([solution.first_error is not None for solution in others])
    problem_S = np.array([solution.problem for solution in others])

    tuned_on = len({solution.problem for solution in tuning})
    on_errors = float(found_S[error_S].mean())
    on_right = float(found_S[~error_S].mean())
    [mean] = harmonic_mean(np.array([on_errors]), np.array([on_right])).tolist()
    if {on_errors, on_right} & {0.0, 1.0}:
        # Resampling shows no spread of an accuracy where all or none are found: F1 of both ends is cautious.
        parts = [proportion_interval(found_S[of_S], problem_S[of_S].tolist()) for of_S in (error_S, ~error_S)]
        low, high = harmonic_mean(*np.array([[part.low, part.high] for part in parts])).tolist()
        return ErrorF1(Interval(mean, low, high), on_errors, on_right, threshold, tuned_on)

    problems, place_S = np.unique(problem_S, return_inverse=True)

    def f1(drawn_RK: np.ndarray) -> np.ndarray:
        weight_RS = times_drawn(drawn_RK)[:, place_S]
        with np.errstate(invalid="ignore"):
            accuracies = [
                (weight_RS * (found_S & of_S)).sum(1) / (weight_RS * of_S).sum(1)
                for of_S in (error_S, ~error_S)
            ]
        return harmonic_mean(*accuracies)

    found_at = resampled_interval(mean, f1, len(problems), seed, numbers=len(others))
    interval = Interval(mean, max(found_at.low, 0.0), min(found_at.high, 1.0))
    return ErrorF1(interval, on_errors, on_right, threshold, tuned_on)


def best_threshold(solutions: Sequence[ScoredSolution], name: str) -> float:
    """The threshold with the highest F1; of equally good ones the middle one.

    What matters is between which two scores it lies: those halfway, and one beyond either end, are tried.
    """
    scores = np.unique([score for solution in solutions for score in solution.scores[name]])
    tried_C = np.concatenate([scores[:1] - 1, (scores[:-1] + scores[1:]) / 2, scores[-1:] + 1])
    found_CS = found(solutions, name, tried_C)
    error_S = np.array([solution.first_error is not None for solution in solutions])
    f1_C = harmonic_mean(found_CS[:, error_S].mean(1), found_CS[:, ~error_S].mean(1))
    best = np.flatnonzero(f1_C == f1_C.max())
    return float(tried_C[best[(len(best) - 1) // 2]])


def found(solutions: Sequence[ScoredSolution], name: str, threshold_C: np.ndarray) -> np.ndarray:
    """Whether each threshold is right about each solution [C, S]: the first step with a score below it is the
    first error, and there is none where there is no error."""
    columns = []
    for solution in solutions:
        scores = np.array(solution.scores[name])
        before = scores[: solution.first_error]  # all where it is None
        quiet_C = threshold_C <= before.min(initial=np.inf)
        if solution.first_error is None:
            columns.append(quiet_C)
        else:
            columns.append(quiet_C & (scores[solution.first_error] < threshold_C))
    return np.stack(columns, axis=1)


def harmonic_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """2ab / (a + b), and 0 where both are 0."""
    total = a + b
    return np.divide(2 * a * b, total, out=np.zeros_like(total), where=total != 0)


def _by_generator(
    solutions: Sequence[ScoredSolution], names: Sequence[str]
) -> dict[str, dict[str, Interval | None]]:
    generators = sorted({solution.generator for solution in solutions})
    if len(generators) < 2:
        return {}
    by_generator = {}
    for generator in generators:
        own = [solution for solution in solutions if solution.generator == generator]
        if len({s.problem for s in own if s.first_error is not None}) >= FEWEST:
            measured = {name: auroc_interval(*labeled_steps(own, name)) for name in names}
            by_generator[generator] = measured
    return by_generator
