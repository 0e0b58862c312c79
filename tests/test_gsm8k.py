"""GSM8K: reading questions, extracting the stated number, and comparing numbers exactly."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rationalyst_jax.tasks.benchmarks import TASKS, task_named
from rationalyst_jax.tasks.gsm8k import TASK, correct, extract, flexible
from rationalyst_jax.tasks.numbers import number
from rationalyst_jax.tasks.question import Question

CASES = Path(__file__).parent / "cases" / "gsm8k.jsonl"
SHARED_CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "gsm8k_extract.jsonl"

# Verdicts of SHARED_CASES that we do not share: it says None, but each of these is one exact number that a
# careful grader would accept.
OTHER_VERDICTS = {
    "The answer is therefore 18.": "18",  # as "indeed": the word changes nothing
    "The answer is 18, not 20.": "18",  # the other number is named as what it is not
    "The answer is minus 3.": "-3",
    "The answer is negative 3.": "-3",
    "The answer is 3 and a half.": "3.5",
    "The answer is 3 and 1/2.": "3.5",
    "The answer is 3½.": "3.5",
    "The answer is 3 ½.": "3.5",
    "The answer is 5 hundred thousand.": "500000",
    # The second answer is to a question of the model's own, so the first one stands.
    "#### 18\n\nQuestion: How many?\nAnswer: ...\n#### 7": "18",
}


def cases(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


decimals = st.decimals(min_value=-(10**9), max_value=10**9, places=4)


@pytest.mark.parametrize("case", cases(CASES), ids=lambda case: case["text"])
def test_the_stated_number_is_extracted_and_nothing_else(case: dict):
    question = Question("case", "?", gold=case["gold"])
    assert extract(case["text"]) == case["answer"], case["fault"]
    assert TASK.grade([(case["answer"], question)]) == [case["verdict"]], case["fault"]


@pytest.mark.skipif(not SHARED_CASES.exists(), reason="cases of others are looked for in ../shared/cases")
def test_verdicts_of_others_are_met_or_disagreed_with_by_name():
    theirs = {case["text"]: case["answer"] for case in cases(SHARED_CASES)}
    assert set(OTHER_VERDICTS) <= set(theirs)
    assert {text: extract(text) for text in theirs} == theirs | OTHER_VERDICTS
    ours = {case["text"] for case in cases(CASES)}
    assert len(ours) >= len(theirs) and not ours & set(theirs)


@pytest.mark.parametrize(
    "text", ("9" * 5000, "1/" + "9" * 5000, "0." + "3" * 20 + "/" + "7" * 21, "1" + " million" * 3 * 10**4)
)
def test_a_number_without_end_is_none(text: str):
    assert extract("The answer is " + text) is None
    assert extract("#### " + text) is None


FLEXIBLE = {
    "She has 18 eggs and sells 4 of them.": "4",
    "It costs $1,234.50.": "1234.5",
    "5-3=2": "2",
    "It is 5 - 3": "3",
    "It was 3 - 5, so -2": "-2",
    "It was -2": "-2",
    "#### 12\n\nQuestion: What is 5 * 8?\n#### 40": "12",
    "The answer is 1/2.": "2",
    "The answer is .5": "0.5",
    "1,2345": "2345",
    "It is 12, not 20": "20",
    "No number at all": None,
    "9" * 41: None,
    "": None,
}


@pytest.mark.parametrize(("text", "answer"), FLEXIBLE.items())
def test_the_flexible_answer_is_the_last_number_of_the_solution(text: str, answer: str | None):
    assert flexible(text) == answer
    assert TASK.flexible(text, Question("q", "?")) == answer


@given(st.text())
def test_any_text_is_extracted_from_without_error(text: str):
    for opening in ("", "#### ", "The answer is ", "\\boxed{"):
        for answer in (extract(opening + text), flexible(opening + text)):
            assert answer is None or number(answer) is not None


# Quadratic reading would take minutes for one of these, linear reading takes seconds for all of them.
STUCK = r"""
import sys
from rationalyst_jax.tasks.gsm8k import extract, flexible
loops = (" ", "9", "{", "(", " (a", "#### ", "a-", "* ", "1,", "2+3=", "Q ", "answer is 1 ")
for loop in (*loops, r"\boxed{", r"\frac{"):
    for opening in ("", "The answer is 5 ", r"\boxed{"):
        for ending in ("", "=5"):
            text = opening + loop * (50_000 // len(loop)) + ending
            extract(text)
            flexible(text)
"""


def test_a_model_caught_in_a_loop_is_read_in_linear_time():
    subprocess.run([sys.executable, "-c", STUCK], check=True, timeout=180)


@given(st.text(alphabet="0123456789.,-+/*$% =x{}\\\n#abe:½", max_size=30))
def test_text_of_digits_and_signs_is_extracted_from_without_error(text: str):
    for answer in (extract("The answer is " + text), flexible(text)):
        assert answer is None or correct(answer, answer)


@given(
    decimals,
    st.sampled_from(
        ("#### {}", "The answer is {}.", "the answer is ${}", "The answer is **{} apples**.", r"\boxed{{{}}}")
    ),
    st.booleans(),
)
def test_a_number_survives_every_form_of_statement(value, form: str, grouped: bool):
    text = form.format(f"{value:,}" if grouped else value)
    answer = extract("First 3 * 4 = 12.\n" + text)
    assert answer is not None
    assert Fraction(answer) == Fraction(value)


@given(decimals, decimals)
def test_only_equal_numbers_are_correct(a, b):
    assert correct(str(a), str(b)) == (Fraction(a) == Fraction(b))


def test_decimals_are_not_cut():
    assert not correct("3.5", "3")
    assert not correct("3", "3.5")
    assert correct("3.0", "3")
    assert correct("1,000", "1000")
    assert not correct(None, "3")
    assert not correct("0.3333333333333333", "1/3")


@pytest.mark.parametrize(("file", "count"), (("test", 1319), ("train", 7473)))
def test_all_gold_answers_are_accepted_and_their_neighbours_rejected(shared, file: str, count: int):
    path = shared / "gsm8k" / f"{file}.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    questions = TASK.read(path)
    assert len(questions) == len(rows) == count
    for i, (question, row) in enumerate(zip(questions, rows, strict=True)):
        assert question.text == row["question"]
        assert correct(extract(row["answer"]), question.gold)
        assert correct(flexible(row["answer"]), question.gold)
        gold = int(row["answer"].split("#### ")[1].replace(",", ""))
        assert correct(extract(f"The answer is {gold:,}."), question.gold)
        wrong = gold + (-1) ** i
        assert not correct(extract(f"The answer is {wrong}."), question.gold)
        assert not correct(flexible(f"#### {wrong}"), question.gold)


def test_real_solutions_are_graded_as_processbench_labelled_them(shared):
    gold = {question.text: question.gold for question in TASK.read(shared / "gsm8k" / "test.jsonl")}
    solutions = json.loads((shared / "process_bench" / "processbench_gsm8k.json").read_text(encoding="utf-8"))
    stated = [
        (correct(answer, gold[solution["problem"]]), solution["final_answer_correct"])
        for solution in solutions
        for answer in [extract("\n\n".join(solution["steps"]))]
        if answer is not None
    ]
    assert len(stated) > 330
    # Two of the labels call the gold number itself wrong.
    assert sum(ours != theirs for ours, theirs in stated) <= 2


def test_questions_are_named_by_their_id_or_their_line(tmp_path):
    path = tmp_path / "held.jsonl"
    rows = [
        {"question": "a?", "answer": "#### 1"},
        {"id": "mine", "question": "b?", "answer": "so\n#### 1,000"},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    held, mine = TASK.read(path)
    assert (held.id, held.text, held.gold) == ("held-1", "a?", "1")
    assert (mine.id, mine.text, mine.gold) == ("mine", "b?", "1000")


@pytest.mark.parametrize(
    ("row", "complaint"),
    (
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ('{"answer": "#### 1"}', "no 'question'"),
        ('{"question": " ", "answer": "#### 1"}', "'question' is empty"),
        ('{"question": "a?", "answer": 1}', "'answer' must be text, found 1"),
        ('{"question": "a?", "answer": "1"}', "'answer' must end in '#### number', found '1'"),
        ('{"question": "a?", "answer": "#### one"}', "found 'one'"),
        ('{"id": "x", "question": "a?", "answer": "#### 1"}', "id 'x' is there twice"),
        ('{"id": 7.5, "question": "a?", "answer": "#### 1"}', "'id' must be text, found 7.5"),
    ),
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, row: str, complaint: str):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"id": "x", "question": "a?", "answer": "#### 1"}\n' + row + "\n")
    with pytest.raises(ValueError, match=r"questions\.jsonl:2: ") as error:
        TASK.read(path)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_and_files_without_rows_are_named(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(ValueError, match=r"questions\.jsonl:1: not JSON"):
        TASK.read(path)
    path.write_bytes(b"\n")
    with pytest.raises(ValueError, match=r"questions\.jsonl: holds no rows"):
        TASK.read(path)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        TASK.read(tmp_path / "none.jsonl")


def test_tasks_are_found_by_name():
    assert all(task.name == name for name, task in TASKS.items())
    assert task_named("gsm8k").extract("#### 3", Question("q", "?")) == "3"
    with pytest.raises(ValueError, match="unknown task 'gsm9k': there are gsm8k"):
        task_named("gsm9k")
