r"""MATH: reading questions, finding the stated answer, and grading it in processes that may be killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rationalyst_jax.tasks.killable import ItemLimits, each
from rationalyst_jax.tasks.latex import MAX_LENGTH, plain
from rationalyst_jax.tasks.math import MATH500, TASK, extract, flexible
from rationalyst_jax.tasks.math_answers import exactly, read, same
from rationalyst_jax.tasks.math_grading import grade
from rationalyst_jax.tasks.question import Question, Verdict

ROOT = Path(__file__).resolve().parents[1]
CASES = [
    json.loads(line)
    for line in (ROOT / "tests" / "cases" / "math.jsonl").read_text(encoding="utf-8").splitlines()
]
SHORT = ItemLimits(seconds=2)
ENDLESS = "sum(0 for _ in iter(int, 1))"  # Python, to be evaluated


def verdicts_of(pairs: list[tuple[str | None, str]]) -> list[Verdict]:
    return grade([(answer, Question("q", "?", gold)) for answer, gold in pairs], SHORT)


# ---- Cases ----


@pytest.fixture(scope="module")
def case_verdicts() -> list[Verdict]:
    return verdicts_of([(extract(case["text"]), case["gold"]) for case in CASES])


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number]["text"][-40:])
def test_the_stated_answer_is_found_and_graded(number: int, case_verdicts: list[Verdict]):
    case = CASES[number]
    question = Question("q", "?", case["gold"])
    assert TASK.extract(case["text"], question) == case["answer"]
    assert TASK.flexible(case["text"], question) == case["flexible"]
    assert case_verdicts[number] == case["verdict"], case["fault"]


def test_the_cases_are_many_and_none_is_there_twice():
    assert len({(case["text"], case["gold"]) for case in CASES}) == len(CASES) >= 120


FLEXIBLE = {
    "It is $x = 4$, or $x = 7$ then": "7",
    r"So \(\frac{2}{3}\) of it": "2/3",
    "It is $3$ and not 5": "5",
    r"\boxed{4} and then \boxed{}": "4",
    r"It is $\boxed{\frac{2}{3}$": "2/3",
    "It costs 1,200.50 in all": "1200.5",
    "No number at all": None,
    "": None,
}


@pytest.mark.parametrize(("text", "answer"), FLEXIBLE.items())
def test_the_flexible_answer_is_the_last_box_or_math_or_number(text: str, answer: str | None):
    assert flexible(text) == answer


# ---- Ways of writing ----


PIECES = r"""\frac \dfrac \sqrt \text{ \left( \right] \{ \} \pm \cup \pi ^\circ \% \$ \, \! \\ \in \le < = { }
    ( ) [ ] , ; : . 1 2 007 3.5 10,000 x y R i _ ^ - + / ' | & \begin{pmatrix} \end{pmatrix} \overline{3} cm
    and $"""
LATEX = st.lists(st.sampled_from([" ", *PIECES.split()]), max_size=12).map("".join)


@given(LATEX | st.text(max_size=20))
def test_plain_writing_is_plain_already_and_equals_itself(latex: str):
    answer = plain(latex)
    assert plain(answer) == answer
    assert same(read(answer), read(answer), exactly) is True


@given(LATEX | st.text())
@example(r"\text{,")  # the brace goes, and then the comma
def test_any_text_is_read_without_error(text: str):
    for opening in ("", "The answer is ", r"\boxed{"):
        for answer in (extract(opening + text), flexible(opening + text), extract(opening + text + "}")):
            assert answer is None or plain(answer) == answer != ""


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=50))
def test_a_number_is_itself_in_every_writing_and_no_other(value):
    over, under = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    writings = [
        rf"{sign}\frac{{{over}}}{{{under}}}",
        rf"{sign}{over}/{under}",
        rf"\dfrac{{{sign}{over}}}{{{under}}}",
    ]
    if over > under > 1:
        writings.append(rf"{sign}{over // under}\frac{{{over % under}}}{{{under}}}")
    assert len({plain(writing) for writing in writings}) == 1
    assert same(read(plain(writings[0])), read(plain(str(value + 1))), exactly) is False


# Quadratic reading would take minutes for one of these, linear reading takes seconds for all of them.
STUCK = r"""
from rationalyst_jax.tasks.math import extract, flexible
loops = (" ", "9", "{", "(", "$", "$x", r"\(", r"\[x", "#### ", "answer is 1 ", "1,", "9 ", "= ", "a-", "x,")
for loop in (*loops, r"\boxed{", r"\frac{", r"\frac", r"\text{", r"\sqrt", r"\boxed", "^{", r"\, "):
    for opening in ("", "The answer is ", r"\boxed{"):
        text = opening + loop * (20_000 // len(loop))
        extract(text)
        flexible(text)
        extract(opening + loop * (900 // len(loop)) + "}")
"""


def test_a_model_caught_in_a_loop_is_read_in_linear_time():
    subprocess.run([sys.executable, "-c", STUCK], check=True, timeout=180)


@pytest.mark.parametrize(
    "loop", ("(", "{", "((1,2),", r"\frac{1}{", r"\{", "1+", "-", "x=", "^{2", r"\pm", r"\cup")
)
def test_deeply_nested_answers_are_taken_apart(loop: str):
    answer = plain((loop * MAX_LENGTH)[:MAX_LENGTH])
    assert same(read(answer), read("5"), exactly) in (False, None)


# ---- Workers ----


def test_what_takes_too_long_is_undecided_and_the_rest_is_graded_in_order():
    pairs = [
        (r"\sqrt{12}", r"2\sqrt{3}"),
        (r"9^{9^{9^{9}}}", "2"),
        (None, "2"),
        (r"\sqrt{18}", r"2\sqrt{3}"),
        (r"\int_0^{100} e^{\sin(x^x)} dx", "2"),
        ("x(x+1)", "x^2+x"),
        ("2", "2"),
    ]
    assert verdicts_of(pairs) == ["right", "undecided", "unanswered", "wrong", "undecided", "right", "right"]


def test_a_dead_worker_costs_its_item_and_no_other():
    items = ["1 + 1", "__import__('os')._exit(3)", ENDLESS, "2 + 2", "__import__('os').abort()", "3 + 3"]
    assert each(eval, items, ItemLimits(seconds=1), preload="math", workers=2) == [2, None, None, 4, None, 6]


def test_memory_is_limited():
    items = ["len(bytearray(1 << 20))", "__import__('os')._exit(1) if len(bytearray(1 << 31)) else 0"]
    with pytest.raises(MemoryError):
        eval("bytearray(1 << 62)")
    assert each(eval, items, ItemLimits(memory=1 << 30), preload="math") == [1 << 20, None]


def test_no_worker_outlives_the_call():
    pids = each(eval, ["__import__('os').getpid()"] * 4, SHORT, preload="math", workers=2)
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_cannot_begin_is_an_error_and_not_a_loop():
    with pytest.raises(RuntimeError, match="ended before it had begun"):
        each(eval, ["1"], SHORT, preload="no_module_of_this_name")


INTERRUPTED = f"""
import signal
from rationalyst_jax.tasks.killable import ItemLimits, each
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    each(eval, ["print('on', flush=True) or {ENDLESS}"] * 3, ItemLimits(seconds=600), preload="math")
"""


def test_an_interrupted_call_leaves_nothing_running(tmp_path: Path):
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    # A session of its own, to which Ctrl-C goes as a terminal would send it: to all of its processes.
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert said.count("KeyboardInterrupt") == 1  # the parent's
    for _ in range(100):  # the fork server sees its parent gone, and ends
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("processes are left")


def test_sympy_is_imported_by_workers_only():
    program = r"""
import sys
from rationalyst_jax.tasks.benchmarks import TASKS
from rationalyst_jax.tasks.math import MATH500, extract
from rationalyst_jax.tasks.question import Question
if __name__ == "__main__":
    pairs = [(extract(r"\boxed{\frac12}"), "0.5"), (r"\sqrt{8}", r"2\sqrt{2}"), ("3", "4")]
    answers = [(answer, Question("q", "?", gold)) for answer, gold in pairs]
    assert MATH500.grade(answers) == ["right", "right", "wrong"]
    assert not {"sympy", "math_verify", "latex2sympy2_extended"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


# ---- Real rows ----


def altered(gold: str) -> Iterator[str]:
    """Answers that are near a gold answer of MATH-500, and wrong."""
    numbers = list(re.finditer(r"\d+", gold))
    for number in {numbers[0], numbers[-1]} if numbers else ():
        yield f"{gold[: number.start()]}{int(number[0]) + 1:0{len(number[0])}}{gold[number.end() :]}"
    if not re.search(r"[=,_]|\\(?:pm|text|mbox|cup|left|begin|in)|\\{|^[(\[]|^0$", gold) or r",\!" in gold:
        yield gold[1:] if re.fullmatch(r"-[^+-]*", gold) else f"-({gold})"
    if not re.search(r"[=,_$]|\\(?:text|mbox|begin|in|circ)|\\{", gold):
        yield f"{gold}+1"
    if fraction := re.fullmatch(r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", gold):
        yield rf"\frac{{{fraction[2]}}}{{{fraction[1]}}}"
    if group := re.fullmatch(r"(?:\\left)?([(\[])([^()\[\]]*?)(?:\\right)?([)\]])", gold.replace(" ", "")):
        opening, inside, closing = group.groups()
        parts = inside.split(",")
        if len(parts) > 1:
            yield f"{opening}{','.join(parts[::-1])}{closing}"
            yield f"{opening}{','.join(parts[:-1])}{closing}"
            yield f"{'[' if opening == '(' else '('}{inside}{closing}"
            yield rf"\{{{inside}\}}"
            yield inside
    if base := re.fullmatch(r"(\d+)_\{?(\d+)\}?", gold):
        digits, radix = base.groups()
        yield digits
        yield f"{digits}_{int(radix) + 1}"
        yield str(int(digits, int(radix)))
    if re.fullmatch(r"-?\d+(?:, ?-?\d+)+", gold) and not re.fullmatch(r"\d+,\d{3}", gold):
        yield gold.rpartition(",")[0]
        yield f"({gold})"
    for unit, other in (
        (r"^\circ", r"\%"), (r"^\circ", r"\text{ radians}"), (r"\$", r"\text{cents }"), ("cents", "dollars"),
        ("cm", "m"), ("inches", "feet"), ("^2", "^3"), ("degrees", "radians"),
    ):  # fmt: skip
        if unit in gold:
            yield (gold.replace(unit, "") + other) if unit == r"\$" else gold.replace(unit, other)


def boxed(answer: str) -> str | None:
    return extract(rf"So it is $\boxed{{{answer}}}$.")


def test_all_of_math500_is_read_and_its_golds_are_right(shared):
    questions = MATH500.read(shared / "math" / "math500.jsonl")
    assert len(questions) == MATH500.size
    assert {question.split for question in questions} == {"test"}
    assert {question.level for question in questions} == {1, 2, 3, 4, 5}
    assert len({question.subject for question in questions}) == 7
    for answers in (
        [question.gold for question in questions],
        [boxed(question.gold) for question in questions],
        [extract(question.solution) for question in questions],
        [flexible(question.solution) for question in questions],
    ):
        assert grade(list(zip(answers, questions, strict=True))) == ["right"] * 500


def accepted_of_other_rows(questions: list[Question], offset: int) -> set[tuple[str, str]]:
    """Golds of other rows that are not called wrong. Left out are those that are one answer: the same text,
    but for blanks, the name before it and the size of its fraction."""

    def key(gold: str) -> str:
        return gold.replace(" ", "").replace("dfrac", "frac").removeprefix("x=")

    pairs = [
        (questions[(i + offset) % len(questions)].gold, question) for i, question in enumerate(questions)
    ]
    pairs = [(other, question) for other, question in pairs if key(other) != key(question.gold)]
    assert len(pairs) > 480
    verdicts = grade([(boxed(other), question) for other, question in pairs])
    return {(o, q.gold) for (o, q), verdict in zip(pairs, verdicts, strict=True) if verdict != "wrong"}


def accepted_of_altered(questions: list[Question]) -> set[tuple[str, str]]:
    pairs = [(answer, question) for question in questions for answer in altered(question.gold)]
    verdicts = grade([(boxed(answer), question) for answer, question in pairs])
    return {(a, q.gold) for (a, q), verdict in zip(pairs, verdicts, strict=True) if verdict != "wrong"}


def test_golds_of_other_rows_and_altered_golds_are_wrong(shared):
    questions = MATH500.read(shared / "math" / "math500.jsonl")
    assert accepted_of_other_rows(questions, 1) == set()
    structured = [question for question in questions if re.search(r"[,_$]|\\circ|text|mbox", question.gold)]
    assert accepted_of_altered(structured) == set()


@pytest.mark.slow
def test_no_gold_of_another_row_and_no_altered_gold_is_accepted(shared):
    questions = MATH500.read(shared / "math" / "math500.jsonl")
    for offset in (2, 3, 7, 50, 251):
        assert accepted_of_other_rows(questions, offset) == set()
    assert sum(1 for question in questions for _ in altered(question.gold)) == 1687
    assert accepted_of_altered(questions) == set()


def solutions_not_right(questions: list[Question]) -> list[Question]:
    verdicts = grade([(extract(question.solution), question) for question in questions])
    return [question for question, verdict in zip(questions, verdicts, strict=True) if verdict != "right"]


def test_solutions_of_the_training_split_are_right(shared):
    questions = TASK.read(shared / "math" / "train.jsonl")
    assert len(questions) == 7500
    assert Counter(question.level for question in questions)[0] == 2  # "Level ?"
    assert [question.id for question in questions if not question.gold] == [
        "train/number_theory/7115.json",
        "train/number_theory/7117.json",
    ]
    assert solutions_not_right([question for question in questions[::10] if question.gold]) == []


@pytest.mark.slow
def test_all_solutions_with_a_gold_are_right(shared):
    questions = TASK.read(shared / "math" / "train.jsonl")
    assert all(not question.gold for question in solutions_not_right(questions))


# ---- Rows ----


def test_a_row_is_read_with_or_without_its_answer(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {
            "problem": "a?",
            "solution": r"First \boxed{1}, so \fbox{\frac{1}{2}}.",
            "level": "Level 3",
            "type": "Geometry",
        },
        {
            "problem": "b?",
            "answer": " 7 ",
            "subject": "Algebra",
            "level": 4,
            "unique_id": "test/algebra/1.json",
        },
        {"problem": "c?", "solution": r"It is \boxed{}.", "level": "Level ?"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second, third = TASK.read(path)
    assert (first.id, first.gold, first.level, first.subject) == ("rows-1", r"\frac{1}{2}", 3, "Geometry")
    assert first.solution == rows[0]["solution"]
    assert (second.id, second.gold, second.level, second.split) == ("test/algebra/1.json", "7", 4, "test")
    assert (third.gold, third.level, third.split) == ("", 0, "")


@pytest.mark.parametrize(
    ("row", "complaint"),
    (
        ({"solution": r"\boxed{1}"}, "no 'problem'"),
        ({"problem": " ", "solution": r"\boxed{1}"}, "'problem' is empty"),
        ({"problem": "a?"}, "no 'solution'"),
        ({"problem": "a?", "answer": ""}, "'answer' is empty"),
        ({"problem": "a?", "answer": 5}, "'answer' must be text, found 5"),
        (
            {"problem": "a?", "answer": "5", "level": "Level 9"},
            "'level' must be from 1 to 5, found 'Level 9'",
        ),
        ({"problem": "a?", "answer": "5", "level": 0}, "found 0"),
        ({"problem": "a?", "answer": "5", "level": True}, "found True"),
        ({"problem": "a?", "answer": "5", "type": 3}, "'type' must be text, found 3"),
        ({"problem": "a?", "answer": "5", "unique_id": "x"}, "id 'x' is there twice"),
    ),
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, row: dict, complaint: str):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ({"problem": "a?", "answer": "1", "unique_id": "x"}, row))))
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: ") as error:
        TASK.read(path)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
