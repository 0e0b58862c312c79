"""GSM8K: reading questions, extracting the stated number, and comparing numbers exactly."""

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rationalyst_jax.tasks.gsm8k import correct, extract, number, read, written
from rationalyst_jax.tasks.task import TASKS, task_named

STATED = {
    "She makes 18 dollars.\n#### 18": "18",
    "#### 18\n": "18",
    "####18": "18",
    "#### -10": "-10",
    "#### $1,234.50": "1234.5",
    "#### 2,125 dollars": "2125",
    "#### 18.": "18",
    "#### **18.**": "18",
    "The answer is 5.": "5",
    "the answer is 5. The other 7 are gone.": "5",
    "THE ANSWER IS 5": "5",
    "So the answer is: 5": "5",
    "The answer is:\n\n5": "5",
    "Final answer: $42": "42",
    "**Final Answer:** 42": "42",
    "The answer is **42**.": "42",
    "**The answer is:** 42": "42",
    "The answer is *$42*.": "42",
    "The answer is $3.5.": "3.5",
    "The answer is 3.50 dollars": "3.5",
    "The answer is .5": "0.5",
    "The answer is 007": "7",
    "The answer is 1,450,000.": "1450000",
    "The answer is -5 degrees": "-5",
    "The answer is \u22125": "-5",
    "The answer is -$5": "-5",
    "The answer is $-5": "-5",
    "The answer is +5": "5",
    "The answer is 50%.": "50",
    "The answer is 1/2.": "0.5",
    "The answer is 1/3 of them": "1/3",
    "The answer is -2 1/2 cups": "-2.5",
    "The answer is 5kg": "5",
    "The answer is 18 eggs, which is all of them": "18",
    "The answer is 60 km/h": "60",
    "The answer is 3 of the 5 boxes": "3",
    "The answer is $18/day": "18",
    "The answer is a) no": None,
    "The answer is 1.5 million": "1500000",
    "The answer is 9 * 2 = $18.": "18",
    "The answer is 5 (that is 2+3=5).": "5",
    r"So \boxed{18}": "18",
    r"The answer is $\boxed{18}$.": "18",
    r"\[ \boxed{\$1{,}234 \text{ dollars}} \]": "1234",
    r"\boxed{-\frac{3}{4}}": "-0.75",
    r"\boxed{2\frac{1}{2}}": "2.5",
    r"The answer is \$18.": "18",
    r"The answer is \(18\).": "18",
    r"The answer is 50\%": "50",
    # several statements: the last one counts, readable or not
    "The answer is 4. No: the answer is 5.": "5",
    "#### 4\nThe answer is 5.": "5",
    "The answer is 4.\n#### 5": "5",
    "The answer is 4. Then the answer is unclear.": None,
    "#### 1. Count the eggs\nThe answer is 16.\n#### Done": "16",
}

UNSTATED = (
    "",
    "She has 18 eggs.",
    "16 - 3 - 4 = 9",
    "Answer: 16 eggs are laid a day",
    "The answer isn't 5",
    "The answer is not 5",
    "The answer is five",
    "The answer is",
    "The answer is - 5",
    "The answer is 3 + 4",
    "The answer is 3-4 apples",
    "The answer is 5 or 6",
    "The answer is 2 hours and 30 minutes",
    "The answer is 5 apples, 3 pears",
    "The answer is 5 very red apples and 3 pears",
    "The answer is 10% of 50",
    "The answer is 5 x 3",
    "The answer is 12,34",
    "The answer is 1.234,50",
    "The answer is 3:30",
    "The answer is 1e5",
    "The answer is 10^5",
    "The answer is 1/0",
    "The answer is 1/2/3",
    "The answer is 5½",
    "#### 1. Count the eggs",
    "#### Step 1",
    r"\boxed{18",
    r"\boxed{10\sqrt{2}}",
    "The answer is " + "9" * 5000,
    "The answer is 1/" + "9" * 5000,
    "The answer is 0." + "3" * 20 + "/" + "7" * 19,
)

decimals = st.decimals(min_value=-(10**9), max_value=10**9, places=4)


@pytest.mark.parametrize(("text", "answer"), STATED.items())
def test_the_stated_number_is_extracted(text: str, answer: str | None):
    assert extract(text) == answer


@pytest.mark.parametrize("text", UNSTATED)
def test_what_states_no_single_number_stays_unanswered(text: str):
    assert extract(text) is None


@given(st.text())
def test_any_text_is_extracted_from_without_error(text: str):
    for opening in ("", "#### ", "The answer is ", "\\boxed{"):
        answer = extract(opening + text)
        assert answer is None or number(answer) is not None


@pytest.mark.parametrize(
    "stuck", ("1,", "9 ", "1 / ", "2+3=", " ", "a ", "(", ".5", "#### ", "\\frac{", "answer is 1 ")
)
def test_a_model_caught_in_a_loop_is_read_quickly(stuck: str):
    started = time.process_time()
    extract("The answer is 5 " + stuck * 5000 + "a" + stuck * 5000)
    assert time.process_time() - started < 1


@given(st.text(alphabet="0123456789.,-+/*$% =x{}\\\n#abe:½", max_size=30))
def test_text_of_digits_and_signs_is_extracted_from_without_error(text: str):
    answer = extract("The answer is " + text)
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


@given(st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6))
def test_a_written_number_reads_back_as_itself(value: Fraction):
    assert number(written(value)) == value


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


def test_all_gold_answers_are_accepted_and_their_neighbours_rejected(shared):
    rows = [json.loads(line) for line in (shared / "gsm8k" / "test.jsonl").read_bytes().splitlines()]
    questions = read(shared / "gsm8k" / "test.jsonl")
    assert len(questions) == len(rows) == 1319
    for question, row in zip(questions, rows, strict=True):
        gold = int(row["answer"].split("#### ")[1].replace(",", ""))
        assert question.text == row["question"]
        assert correct(extract(row["answer"]), question.gold)
        assert correct(extract(f"The answer is {gold:,}."), question.gold)
        for wrong in (gold + 1, gold - 1):
            assert not correct(extract(f"The answer is {wrong}."), question.gold)
            assert not correct(extract(f"#### {wrong}"), question.gold)


def test_real_solutions_are_graded_as_processbench_labelled_them(shared):
    gold = {question.text: question.gold for question in read(shared / "gsm8k" / "test.jsonl")}
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
    assert [(q.id, q.text, q.gold) for q in read(path)] == [("held-1", "a?", "1"), ("mine", "b?", "1000")]


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
        ('{"id": 7, "question": "a?", "answer": "#### 1"}', "'id' must be text, found 7"),
    ),
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, row: str, complaint: str):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"id": "x", "question": "a?", "answer": "#### 1"}\n' + row + "\n")
    with pytest.raises(ValueError, match=r"questions\.jsonl:2: ") as error:
        read(path)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_and_files_without_rows_are_named(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(ValueError, match=r"questions\.jsonl:1: not JSON"):
        read(path)
    path.write_bytes(b"\n")
    with pytest.raises(ValueError, match=r"questions\.jsonl: holds no rows"):
        read(path)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read(tmp_path / "none.jsonl")


def test_tasks_are_found_by_name():
    assert all(task.name == name for name, task in TASKS.items())
    assert task_named("gsm8k").extract("#### 3") == "3"
    with pytest.raises(ValueError, match="unknown task 'gsm9k': there are gsm8k"):
        task_named("gsm9k")
