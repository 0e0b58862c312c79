"""Answers that are options: reading them from what a model wrote, and comparing letters."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rationalyst_jax.tasks.benchmarks import TASKS
from rationalyst_jax.tasks.choices import correct, extract, flexible
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import grade_each

FILES = ("arc", "ecqa", "hellaswag", "mmlu_pro", "proofwriter")
LETTERS = "ABCDEFGHIJ"
FIVE = Question("q", "?", gold="C", choices=("oak", "a birch", "The elm", "3.7", "ash and elm"))


def cases(name: str) -> list[dict]:
    path = Path(__file__).parent / "cases" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


CASES = [case for name in FILES for case in cases(name)]


def asked(case: dict) -> Question:
    return Question("case", "?", gold=case["gold"], choices=tuple(case["choices"]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"])
def test_the_stated_option_is_extracted_and_nothing_else(case: dict):
    assert extract(case["text"], asked(case)) == case["answer"], case["fault"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"])
def test_the_flexible_answer_is_the_last_option_that_is_mentioned(case: dict):
    assert flexible(case["text"], asked(case)) == case["flexible"], case["fault"]


def test_every_case_has_its_verdict():
    questions = [asked(case) for case in CASES]
    answers = [extract(case["text"], question) for case, question in zip(CASES, questions, strict=True)]
    graded = grade_each(correct)(list(zip(answers, questions, strict=True)))
    assert graded == [case["verdict"] for case in CASES]
    assert {"right", "wrong", "unanswered"} == set(graded)


def test_there_are_many_cases_and_none_is_there_twice():
    assert len(CASES) >= 220
    assert len({json.dumps(case, sort_keys=True) for case in CASES}) == len(CASES)


def test_only_the_gold_letter_is_correct():
    assert correct("C", "C")
    assert correct("C", " C\n")
    assert not correct("B", "C")
    assert not correct("c", "C")
    assert not correct(None, "C")
    assert not correct(None, "")
    assert not correct("", "C")


@given(
    st.lists(st.text(max_size=12), max_size=10),
    st.sampled_from(("", "The answer is ", "#### ", "\\boxed{", "Answer: (", "A ")),
    st.text(),
)
def test_any_text_is_read_without_error_as_an_option_or_none(choices: list[str], opening: str, text: str):
    question = Question("q", "?", choices=tuple(choices))
    for reading in (extract, flexible):
        assert reading(opening + text, question) in {None, *question.options}


WORDS = (*"ABCDEI", "(A)", "(c)", "**B**", "\\boxed{", "}", "$", "\\text{", "\n", ".", ",", "####", "Answer:")
PHRASES = (
    "the answer is",
    "is correct",
    "it is",
    "not",
    "or",
    "and",
    "if",
    "wrong",
    "option",
    "oak",
    "elm",
    "3.7",
)


@given(st.lists(st.sampled_from(WORDS + PHRASES), max_size=14).map(" ".join))
@example("the answer is A or the answer is B")
def test_any_words_are_read_as_an_option_or_none_and_a_strict_answer_is_never_lost(text: str):
    answer = extract(text, FIVE)
    assert answer in {None, *FIVE.options}
    assert answer is None or flexible(text, FIVE) is not None


FORMS = ("The answer is {}.", "the answer is: ({})", "Answer: **{}**", "So \\boxed{{{}}}.", "#### {}")
FORMS += (
    "({}) is correct.",
    "The correct option is $\\boxed{{\\text{{{}}}}}$",
    "**({})**",
    "The best choice is {})",
)


@given(st.integers(2, 10), st.data(), st.sampled_from(FORMS), st.text(alphabet="abc xyz,", max_size=30))
def test_a_letter_survives_every_form_of_statement(number: int, data, form: str, before: str):
    question = Question("q", "?", choices=tuple(f"number {i}" for i in range(number)))
    first, last = (data.draw(st.sampled_from(LETTERS)) for _ in range(2))
    text = f"The answer is {first}. {before}.\n{form.format(last)}"
    assert extract(text, question) == (last if last in question.options else None)


# Quadratic reading would take minutes for one of these, linear reading takes seconds for all of them.
STUCK = r"""
import sys
from rationalyst_jax.tasks.benchmarks import TASKS
from rationalyst_jax.tasks.choices import extract, flexible
from rationalyst_jax.tasks.question import Question
question = Question("q", "?", choices=("oak", "a birch", "aa", "3.7", "A"))
loops = (" ", "A", "A ", "A or ", "A, ", "(A)", "{", "$", "if ", "is ", "then, ", "oak ", "#### ")
for loop in (*loops, "answer is ", r"\boxed{", r"\text{"):
    text = "The answer is A" + loop * (50_000 // len(loop)) + " is correct"
    extract(text, question)
    flexible(text, question)
"""


def test_a_model_caught_in_a_loop_is_read_in_linear_time():
    subprocess.run([sys.executable, "-c", STUCK], check=True, timeout=180)


# By task and file; how many rows there are.
REAL = {
    ("arc", "arc/train.jsonl"): 1056,
    ("arc", "arc/test.jsonl"): 1172,
    ("ecqa", "ecqa/ecqa_train.jsonl"): 7112,
    ("commonsense_qa", "ecqa/cqa_dev.jsonl"): 1221,
    ("hellaswag", "hellaswag/val_1000.jsonl"): 1000,
    ("proofwriter", "proofwriter/logic_llm_dev.json"): 600,
    ("proofwriter", "proofwriter/logic_llm_test.json"): 600,
    ("proofwriter", "proofwriter/logic_llm_train.json"): 3000,
    ("mmlu_pro", "mmlu_pro/validation.parquet"): 70,
    ("mmlu_pro", "mmlu_pro/test.parquet"): 12032,
}
VALIDATION = ("mmlu_pro", "mmlu_pro/validation.parquet")


@pytest.mark.parametrize(("task", "file", "count"), [(*real, count) for real, count in REAL.items()])
def test_the_gold_letter_of_every_row_is_right_and_the_next_one_wrong(
    shared, task: str, file: str, count: int
):
    questions = TASKS[task].read(shared / file)
    assert len(questions) == count
    for i, question in enumerate(questions):
        letters = list(question.options)
        wrong = letters[(letters.index(question.gold) + 1) % len(letters)]
        form = FORMS[i % len(FORMS)]
        assert correct(extract(form.format(question.gold), question), question.gold)
        assert extract(form.format(wrong), question) == wrong


def test_a_letter_with_another_options_text_is_not_right(shared):
    task, file = VALIDATION
    for question in TASKS[task].read(shared / file):
        for letter in question.options.keys() - {question.gold}:
            told = f"The answer is ({letter}) {question.options[question.gold]}"
            assert extract(told, question) is None


@pytest.mark.parametrize(("task", "file"), [real for real, count in REAL.items() if count < 1250])
def test_the_exact_text_of_an_option_names_it_unless_another_has_the_same(shared, task: str, file: str):
    for question in TASKS[task].read(shared / file):
        text = question.options[question.gold]
        alone = question.choices.count(text) == 1
        assert extract(f"The answer is {text}", question) == (question.gold if alone else None)


def test_real_chains_of_thought_end_in_their_answer(shared):
    task, file = VALIDATION
    rows = pq.read_table(shared / file).to_pylist()
    for row, question in zip(rows, TASKS[task].read(shared / file), strict=True):
        assert extract(row["cot_content"], question) == row["answer"]
        assert flexible(row["cot_content"], question) == row["answer"]
