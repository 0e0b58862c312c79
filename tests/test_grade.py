"""Traces graded against questions, summarised, and compared with another system's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rationalyst_jax.evaluate.grade import Grade, as_family, compare, grade, summarize
from rationalyst_jax.evaluate.statistics import mcnemar
from rationalyst_jax.tasks.benchmarks import TASKS
from rationalyst_jax.tasks.question import Question

GSM8K = TASKS["gsm8k"]
QUESTIONS = [Question("a", "?", "5"), Question("b", "?", "0.5"), Question("c", "?", "-1000")]


def traces(folder: Path, *rows: dict) -> Path:
    path = folder / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def grades(correct) -> list[Grade]:
    return [
        Grade(str(i), str(i), "1", "1" if right else "2", "right" if right else "wrong")
        for i, right in enumerate(correct)
    ]


def test_traces_are_graded_in_the_questions_order(tmp_path):
    path = traces(
        tmp_path,
        {"id": "c", "answer": "-1,000"},
        {"id": "a", "answer": None, "steps": []},
        {"id": "b", "answer": "5"},
    )
    rows = grade([path], QUESTIONS, GSM8K).strict
    assert [(row.id, row.answer, row.correct) for row in rows] == [
        ("a", None, False),
        ("b", "5", False),
        ("c", "-1,000", True),
    ]
    summary = summarize(rows)
    assert (summary.accuracy, summary.n, summary.unanswered) == (1 / 3, 3, 1)
    assert summary.low <= summary.accuracy <= summary.high


def test_questions_without_trace_and_traces_without_question_are_one_error(tmp_path):
    path = traces(tmp_path, {"id": "a", "answer": "5"}, {"id": "x", "answer": "5"})
    with pytest.raises(ValueError, match=r"traces\.jsonl.*'x'; 2 ids are only in the questions, as 'b'"):
        grade([path], QUESTIONS, GSM8K)


@pytest.mark.parametrize(("limit", "ids"), ((1, "a"), (2, "ab"), (3, "abc"), (9, "abc"), (None, "abc")))
def test_a_limit_cuts_the_traces_to_the_first_questions(tmp_path, limit: int | None, ids: str):
    path = traces(tmp_path, *({"id": name, "answer": "5"} for name in "cab"))
    assert [row.id for row in grade([path], QUESTIONS, GSM8K, limit).strict] == list(ids)


def test_a_limit_hides_no_unknown_trace_and_no_missing_one(tmp_path):
    path = traces(tmp_path, {"id": "c", "answer": "5"}, {"id": "x", "answer": "5"})
    with pytest.raises(ValueError, match=r"traces\.jsonl, as 'x'; 1 ids are only in the questions, as 'a'"):
        grade([path], QUESTIONS, GSM8K, limit=1)


@pytest.mark.parametrize(
    ("row", "complaint"),
    (
        ({"answer": "5"}, "no 'id'"),
        ({"id": "b"}, "'answer' must be text or null, found 'no such key'"),
        ({"id": "b", "answer": 5}, "'answer' must be text or null, found 5"),
        ({"id": "a", "answer": "5"}, "question 'a' has two traces"),
    ),
)
def test_a_malformed_trace_is_named_by_file_and_line(tmp_path, row: dict, complaint: str):
    path = traces(tmp_path, {"id": "a", "answer": "5"}, row)
    with pytest.raises(ValueError, match=r"traces\.jsonl:2: ") as error:
        grade([path], QUESTIONS, GSM8K)
    assert complaint in str(error.value)


def test_comparison_pairs_by_id_and_not_by_order():
    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.8, rng.random(200) < 0.5
    ours = compare(grades(a), grades(b)[::-1])
    assert ours.difference == pytest.approx(a.mean() - b.mean())
    assert 0 < ours.low < ours.difference < ours.high
    assert ours.p == mcnemar(a, b) < 0.01


def test_a_system_is_no_better_than_itself():
    comparison = compare(grades([1, 0, 1]), grades([1, 0, 1]))
    assert (comparison.difference, comparison.p, comparison.smallest) == (0, 1, None)
    assert comparison.low < -0.5 < 0.5 < comparison.high  # three questions show nothing


def test_samples_of_one_question_count_as_one_question():
    right, other = [1, 0, 1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0, 0, 0]
    alone, samples = grades(right), grades(right) * 5
    ours = summarize(samples)
    assert (ours.n, ours.accuracy) == (40, 0.75)
    assert (ours.low, ours.high) == pytest.approx((summarize(alone).low, summarize(alone).high))
    one = compare(alone, grades(other))
    assert one.p == pytest.approx(2 / 2**5)
    for many in (compare(samples, grades(other) * 5), compare(samples, grades(other) * 2)):
        assert many.difference == one.difference == 5 / 8
        assert many.p == pytest.approx(one.p)
        assert (many.low, many.high, many.smallest) == pytest.approx((one.low, one.high, one.smallest))


def test_questions_on_one_passage_count_as_one_cluster():
    alone = grades([1, 0, 1, 1, 1, 0, 1, 1])
    one_each = [replace(row, id=f"{row.id}, {i}", cluster=row.id) for row in alone for i in range(4)]
    assert (summarize(one_each).low, summarize(one_each).high) == pytest.approx(
        (summarize(alone).low, summarize(alone).high)
    )
    other = [replace(row, verdict="wrong") for row in one_each]
    compared = compare(one_each, other)
    assert compared.p == pytest.approx(2 / 2**6)  # of six passages, not of 24 questions
    assert compared.low == pytest.approx(compare(alone, grades([0] * 8)).low)


def test_samples_are_compared_by_the_share_of_them_that_is_right():
    a = [grades([1])[0], grades([0])[0], grades([1])[0]]
    b = [grades([0])[0], grades([1])[0]]
    assert compare(a, b).difference == pytest.approx(2 / 3 - 1 / 2)


def test_comparisons_of_a_family_are_adjusted_together():
    base = grades([0] * 20)
    runs = {"good": [1] * 9 + [0] * 11, "fair": [1] * 6 + [0] * 14, "same": [0] * 20}
    family = as_family({name: compare(grades(right), base) for name, right in runs.items()})
    assert [family[name].p for name in runs] == pytest.approx([2 / 2**9, 2 / 2**6, 1])
    assert [family[name].p_holm for name in runs] == pytest.approx([3 * 2 / 2**9, 2 * 2 / 2**6, 1])


def test_systems_graded_on_different_questions_cannot_be_compared():
    with pytest.raises(ValueError, match="1 ids are only in the second, as '2'"):
        compare(grades([1, 0]), grades([1, 0, 1]))
