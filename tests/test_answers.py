"""Answers are read from our traces, and from the files of other people's programs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
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


def harness(doc_id: int, question: str, *texts: str) -> dict[str, Any]:
    return {"doc_id": doc_id, "doc": {"question": question, "answer": "#### 5"}, "resps": [texts]}


def test_a_folder_is_one_run_whose_files_are_parts(tmp_path: Path):
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"samples: a folder without files \*\.jsonl"):
        grade([folder], SUMS, GSM8K)
    first = harness(0, SUMS[0].text, "The answer is 5.")
    second = harness(0, SUMS[1].text, "The answer is 5.")  # the harness counts anew in each file
    for name, row in (("sums_1", first), ("sums_2", second)):
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    assert [row.verdict for row in grade([folder], SUMS, GSM8K).strict] == ["right", "wrong"]
    assert len(read(tmp_path, GSM8K, SUMS, first, second)) == 2  # the parts in one file
    (folder / "sums_3.jsonl").write_text(json.dumps(harness(0, SUMS[1].text, "The answer is 8.")) + "\n")
    with pytest.raises(ValueError, match=r"sums_3\.jsonl:1: question 'b' has two traces"):
        grade([folder], SUMS, GSM8K)


def test_questions_with_one_text_are_told_apart_by_the_ids_of_documents(tmp_path: Path):
    twins = [Question(name, "Which is B?", "B", ("one", "other")) for name in ("7", "8")]
    row = {"question": "Which is B?", "options": ["one", "other"], "answer": "B", "category": "letters"}
    rows = [
        {"doc_id": i, "doc": row | {"question_id": 8 - i}, "resps": [[f"The answer is {letter}."]]}
        for i, letter in enumerate("AB")
    ]
    task = TASKS["mmlu_pro"]
    assert read(tmp_path, task, twins, *rows) == {"8": [Answer("A", "A")], "7": [Answer("B", "B")]}
    rows[1]["doc"]["question_id"] = 9
    with pytest.raises(ValueError, match=r"answers\.jsonl:2: 2 questions have the text 'Which is B\?"):
        read(tmp_path, task, twins, *rows)
    rows[1]["doc"] |= {"question_id": 8, "question": "Which is A?"}  # an id counts only with its text
    with pytest.raises(ValueError, match=r"answers\.jsonl:2: 0 questions have the text 'Which is A\?"):
        read(tmp_path, task, twins, *rows)


def test_the_questions_that_mmlu_pro_asks_twice_are_read_from_the_harness_files(shared, tmp_path: Path):
    task = TASKS["mmlu_pro"]
    path = shared / "mmlu_pro" / "test.parquet"
    questions = task.read(path)
    often = Counter(question.asked for question in questions)
    twice = {question.id: [Answer("A", "A")] for question in questions if often[question.asked] > 1}
    files: dict[str, list[str]] = {}
    for row in pq.read_table(path).to_pylist():
        if str(row["question_id"]) in twice:
            lines = files.setdefault(row["category"], [])
            options = [option for option in row["options"] if option != "N/A"]
            likelihoods = [[[str(-i), "False"]] for i in range(len(options))]
            lines.append(json.dumps({"doc_id": len(lines), "doc": row, "resps": likelihoods}) + "\n")
    for category, lines in files.items():
        (tmp_path / f"samples_mmlu_pro_{category}.jsonl").write_text("".join(lines))
    assert len(files) > 1 and len(twice) > 100
    assert read_answers(tmp_path, questions, task) == twice


def test_a_document_of_math_without_an_answer_is_read(tmp_path: Path):
    doc = {"problem": "What is $1 + 1$?", "solution": r"It is $\boxed{2}$.", "answer": None, "level": "?"}
    question = Question("m", "What is $1 + 1$?", "2")
    row = {"doc_id": 0, "doc": doc, "resps": [[r"It is \boxed{2}."]]}
    assert read(tmp_path, TASKS["math"], [question], row) == {"m": [Answer("2", "2")]}


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
