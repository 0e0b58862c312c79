"""Answers are read from our traces, and from the files of other people's programs."""

import json
from pathlib import Path
from typing import Any

import pytest

from rationalyst_jax.evaluate.answers import Answer, read_answers
from rationalyst_jax.evaluate.grade import grade
from rationalyst_jax.tasks.benchmarks import TASKS
from rationalyst_jax.tasks.question import Question

GSM8K = TASKS["gsm8k"]
ARC = TASKS["arc"]
SUMS = [Question("a", "What is 2 + 3?", "5"), Question("b", "What is 4 + 4?", "8")]
FLOATS = Question("f", "Which of these floats?", "B", ("a nail", "a cork"))


def read(tmp_path: Path, task: Any, questions: list[Question], *rows: object) -> dict[str, list[Answer]]:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_answers(path, questions, task)


def step(text: str) -> dict[str, str]:
    return {"text": text}


def test_a_trace_is_read_strictly_as_it_was_made_and_flexibly_from_its_steps(tmp_path: Path):
    found = read(
        tmp_path,
        GSM8K,
        SUMS,
        {"id": "a", "answer": None, "strategy": "greedy", "steps": [step("2 + 3 = 5"), step("so 5 it is")]},
        {"id": "b", "answer": "8"},
    )
    assert found == {"a": [Answer(None, "5")], "b": [Answer("8", "8")]}


def test_samples_vote_by_both_readings(tmp_path: Path):
    texts = (["that makes 5"], ["I get 6", "yes 6"], ["6 then"], ["The answer is 7."])
    samples = [{"steps": steps, "answer": None, "finish": "end"} for steps in texts]
    trace = {"id": "a", "answer": "7", "strategy": "self_consistency", "steps": [], "samples": samples}
    assert read(tmp_path, GSM8K, SUMS, trace) == {"a": [Answer("7", "6")]}


def test_samples_of_the_evaluation_harness_are_matched_by_their_documents(tmp_path: Path):
    docs = [
        {"question": "What is 4 + 4?", "answer": "4 + 4 = 8\n#### 8"},
        {"question": "What is 2 + 3?", "answer": "#### 5"},
    ]
    rows = [
        {"doc_id": i, "doc": doc, "resps": [[f"The answer is {4 + i}.", "it is 8"]], "filter": name}
        for name in ("strict-match", "flexible-extract")
        for i, doc in enumerate(docs)
    ]
    assert read(tmp_path, GSM8K, SUMS, *rows) == {
        "b": [Answer("4", "4"), Answer(None, "8")],
        "a": [Answer("5", "5"), Answer(None, "8")],
    }
    choices = {"text": list(FLOATS.choices), "label": ["A", "B"]}
    row = {"id": "x", "question": FLOATS.text, "answerKey": "B", "choices": choices}
    likely = {"doc_id": 3, "doc": row, "resps": [[["-7.5", "False"]], [["-3.25", "False"]]]}
    assert read(tmp_path, ARC, [FLOATS], likely) == {"f": [Answer("B", "B")]}
    with pytest.raises(ValueError, match=r"answers\.jsonl:1: 1 log-likelihoods for 2 options"):
        read(tmp_path, ARC, [FLOATS], likely | {"resps": [[["-7.5", "False"]]]})
    with pytest.raises(ValueError, match=r"answers\.jsonl:1: 'resps' holds neither"):
        read(tmp_path, ARC, [FLOATS], likely | {"resps": []})


def test_files_of_the_released_scripts_are_matched_by_their_questions(tmp_path: Path):
    rows = [
        {
            "question": "Question: What is 2 + 3?\nAnswer:",
            "answer": "5",
            "full_response": "The answer is: 5.",
        },
        {"question": "What is 4 + 4?", "answer": "8", "full_response": "first 3, then 8"},
    ]
    assert read(tmp_path, GSM8K, SUMS, *rows) == {"a": [Answer("5", "5")], "b": [Answer(None, "8")]}
    chosen = {
        "question": f"Question: {FLOATS.text}\nChoices: A - a nail B - a cork\nAnswer:",
        "answer": "B",
        "full_response": "Cork is light. The answer is B.",
    }
    assert read(tmp_path, ARC, [FLOATS], chosen) == {"f": [Answer("B", "B")]}
    with pytest.raises(ValueError, match=r"answers\.jsonl:1: 0 questions have the text 'What is 9\?'"):
        read(tmp_path, GSM8K, SUMS, rows[0] | {"question": "What is 9?"})
    twins = [*SUMS, Question("c", SUMS[0].text, "5")]
    with pytest.raises(ValueError, match=r"answers\.jsonl:1: 2 questions have the text"):
        read(tmp_path, GSM8K, twins, rows[0])
    with pytest.raises(ValueError, match=r"answers\.jsonl:2: question 'a' has two traces"):
        read(tmp_path, GSM8K, SUMS, rows[0], rows[0])


def test_files_of_one_run_are_samples_of_the_same_questions(tmp_path: Path):
    paths = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for path, answer in zip(paths, ("5", "6"), strict=True):
        path.write_text("".join(json.dumps({"id": name, "answer": answer}) + "\n" for name in "ab"))
    graded = grade(paths, SUMS, GSM8K)
    assert [(row.id, row.verdict) for row in graded.strict] == [
        ("a", "right"),
        ("a", "wrong"),
        ("b", "wrong"),
        ("b", "wrong"),
    ]
    assert graded.flexible == graded.strict
