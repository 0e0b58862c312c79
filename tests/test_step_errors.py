"""What counts as a step error, F1 with a tuned threshold, and the whole of the measures."""

from typing import Any

import numpy as np
import pytest

from rationalyst_jax.evaluate.step_errors import (
    ScoredSolution,
    best_threshold,
    error_f1,
    found,
    held_out,
    labeled_steps,
    step_errors,
)


def there(found: Any) -> Any:
    """What must have been found."""
    assert found is not None
    return found


def drawn(seed, count=80, problems=40, telling=1.0):
    """Solutions with random scores; the first error's is lower by `telling`."""
    rng = np.random.default_rng(seed)
    solutions = []
    for _ in range(count):
        steps = int(rng.integers(1, 6))
        first = int(rng.integers(steps)) if rng.random() < 0.5 else None
        scores = {}
        for name in ("likelihood", "implicit", "shuffled"):
            values = np.round(rng.normal(size=steps), 1)
            if first is not None and name == "implicit":
                values[first] -= telling
            scores[name] = tuple(values.tolist())
        problem = f"problem {rng.integers(problems)}"
        solutions.append(ScoredSolution(problem, "someone", first, scores))
    return solutions


def said(scores, threshold):
    """The first step that is said to be wrong, or None: one step after the other."""
    for place, score in enumerate(scores):
        if score < threshold:
            return place
    return None


def f1_at(solutions, threshold, name="implicit"):
    """F1 by its definition."""
    hits = {True: [], False: []}
    for solution in solutions:
        hit = said(solution.scores[name], threshold) == solution.first_error
        hits[solution.first_error is None].append(hit)
    wrong, right = np.mean(hits[False]), np.mean(hits[True])
    return 2 * wrong * right / (wrong + right) if wrong + right else 0.0


def test_steps_after_the_first_error_are_left_out():
    given = [
        ScoredSolution("a", "", 1, {"score": (0.1, 0.2, 0.3, 0.4)}),
        ScoredSolution("b", "", None, {"score": (0.5, 0.6)}),
        ScoredSolution("a", "", 0, {"score": (0.7, 0.8)}),
    ]
    scores, errors, problems = labeled_steps(given, "score")
    assert scores.tolist() == [0.1, 0.2, 0.5, 0.6, 0.7]
    assert errors.tolist() == [False, True, False, False, True]
    assert problems.tolist() == ["a", "a", "b", "b", "a"]


def test_an_error_is_found_at_its_exact_place_alone():
    solutions = drawn(0)
    thresholds = np.linspace(-2, 2, 41)
    hits = found(solutions, "implicit", thresholds)
    for row, threshold in zip(hits, thresholds, strict=True):
        expected = [said(s.scores["implicit"], threshold) == s.first_error for s in solutions]
        assert row.tolist() == expected
    assert hits.any() and not hits.all()


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_than_the_best_one(seed):
    solutions = drawn(seed, count=30)
    best = f1_at(solutions, best_threshold(solutions, "implicit"))
    assert best > 0
    assert best == pytest.approx(max(f1_at(solutions, t) for t in np.linspace(-6, 6, 2401)))


def test_f1_is_of_problems_that_the_threshold_has_not_seen():
    solutions = drawn(1, count=300, problems=150)
    tuning = [s for s in solutions if held_out(s.problem)]
    others = [s for s in solutions if not held_out(s.problem)]
    assert 0.1 < len(tuning) / len(solutions) < 0.3
    assert not {s.problem for s in tuning} & {s.problem for s in others}
    result = there(error_f1(solutions, "implicit"))
    assert result.threshold == best_threshold(tuning, "implicit")
    assert result.f1.mean == pytest.approx(f1_at(others, result.threshold))
    assert result.f1.low < result.f1.mean < result.f1.high
    assert result.tuned_on == len({s.problem for s in tuning})
    # What the other problems' scores are changes F1 and not the threshold.
    swapped = [
        s
        if held_out(s.problem)
        else ScoredSolution(s.problem, "", s.first_error, {"implicit": s.scores["shuffled"]})
        for s in solutions
    ]
    again = there(error_f1(swapped, "implicit"))
    assert again.threshold == result.threshold and again.f1.mean < result.f1.mean


def test_f1_has_an_interval_where_all_or_none_are_found():
    solutions = [
        ScoredSolution(f"problem {i}", "", 0 if i % 2 else None, {"score": (float(i % 2 == 0),)})
        for i in range(60)
    ]
    perfect = there(error_f1(solutions, "score"))
    assert perfect.f1.mean == 1 and 0.8 < perfect.f1.low < 1 and perfect.f1.high == 1
    turned = [
        ScoredSolution(s.problem, "", s.first_error, {"score": (s.scores["score"][0] * sign,)})
        for s in solutions
        for sign in [1 if held_out(s.problem) else -1]
    ]
    none = there(error_f1(turned, "score"))
    assert none.f1.mean == 0 and none.f1.low == 0 and 0 < none.f1.high


def test_without_both_sorts_of_solutions_there_is_no_f1():
    assert error_f1([s for s in drawn(2) if s.first_error is None], "implicit") is None
    assert error_f1([s for s in drawn(2) if held_out(s.problem)], "implicit") is None


def test_a_telling_score_beats_a_shuffled_one():
    result = step_errors(drawn(3, count=200, problems=100, telling=2.0))
    assert (result.solutions, result.problems) == (200, len({s.problem for s in drawn(3, 200, 100)}))
    assert list(result.scores) == ["likelihood", "implicit", "shuffled"]
    assert there(result.scores["implicit"].auroc).low > 0.8
    shuffled = there(result.scores["shuffled"].auroc)
    assert shuffled.low < 0.5 < shuffled.high
    assert list(result.compared) == [("implicit", "shuffled"), ("implicit", "likelihood")]
    assert all(compared.p < 0.01 for compared in result.compared.values())
    assert result.by_generator == {}


def test_generators_are_measured_apart_where_they_have_enough_errors():
    another = [ScoredSolution(s.problem, "another", s.first_error, s.scores) for s in drawn(5, telling=5.0)]
    few = [ScoredSolution(f"only {i}", "few", 0, {**drawn(4)[0].scores}) for i in range(9)]
    result = step_errors([*drawn(4), *another, *few])
    alone = step_errors(drawn(5, telling=5.0))
    assert list(result.by_generator) == ["another", "someone"]
    assert result.by_generator["another"]["implicit"] == alone.scores["implicit"].auroc


def test_solutions_without_any_error_have_counts_and_no_measure():
    result = step_errors([s for s in drawn(6) if s.first_error is None])
    assert result.errors == 0 and result.steps > 0 and not result.compared
    assert {score.auroc for score in result.scores.values()} == {None}


def test_scores_of_few_problems_have_intervals_within_0_and_1():
    given = drawn(7)
    wrong = [s for s in given if s.first_error][:2]
    right = [s for s in given if s.first_error is None and s.problem not in {w.problem for w in wrong}][:3]
    quality = step_errors([*wrong, *right]).scores["implicit"]
    for interval in (there(quality.auroc), there(quality.average_precision)):
        assert 0 <= interval.low <= interval.mean <= interval.high <= 1
