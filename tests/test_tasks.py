"""Rows of the seven benchmarks become questions, and bad ones are refused by their place."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rationalyst_jax.prompts.prompt import load_demonstrations
from rationalyst_jax.tasks.benchmarks import TASKS
from rationalyst_jax.tasks.names import TaskName
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Task

# Real files: the task that reads them, and their rows. Two rows of MATH have an empty box, and so no gold.
WITHOUT_GOLD = {"math/train.jsonl": 2}
FILES = {
    "gsm8k/train.jsonl": ("gsm8k", 7473),
    "gsm8k/test.jsonl": ("gsm8k", 1319),
    "math/train.jsonl": ("math", 7500),
    "math/math500.jsonl": ("math500", 500),
    "ecqa/ecqa_train.jsonl": ("ecqa", 7112),
    "ecqa/cqa_dev.jsonl": ("commonsense_qa", 1221),
    "hellaswag/val_1000.jsonl": ("hellaswag", 1000),
    "proofwriter/logic_llm_train.json": ("proofwriter", 3000),
    "proofwriter/logic_llm_dev.json": ("proofwriter", 600),
    "proofwriter/logic_llm_test.json": ("proofwriter", 600),
    "arc/train.jsonl": ("arc", 1056),
    "arc/test.jsonl": ("arc", 1172),
    "mmlu_pro/validation.parquet": ("mmlu_pro", 70),
    "mmlu_pro/test.parquet": ("mmlu_pro", 12032),
}
ARC = {
    "id": "a1",
    "question": "Which of these floats on water?",
    "choices": {"text": ["a nail", "a cork", "a coin"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
CQA = {
    "id": "c1",
    "answerKey": "B",
    "question": {
        "stem": "Where do rivers end?",
        "choices": [{"label": "A", "text": "attic"}, {"label": "B", "text": "sea"}],
    },
}
ECQA = {
    "id": "e1",
    "question": "Where do rivers end?",
    "choices": {"label": ["A", "B"], "text": ["attic", "sea"]},
    "answerKey": "B",
    "explanation": "Rivers flow down to the sea.",
    "ecqa_author_split": "train",
}
HELLASWAG = {
    "ind": 7,
    "activity_label": "Baking",
    "ctx_a": "A woman kneads dough [step] on a board.",
    "ctx_b": "the dough",
    "endings": ["sings.", "rests [title] Then it rises."],
    "label": "1",
    "split": "val",
    "source_id": "activitynet~v_1",
}
PROOFWRITER = {
    "id": "p1",
    "context": "Mara is tall.",
    "question": "Is it true, false, or unknown? Mara is tall.",
    "options": ["A) True", "B) False", "C) Unknown"],
    "answer": "A",
}
MMLU_PRO = {
    "question_id": 3,
    "question": "How many sides has a hexagon?",
    "options": ["5", "6", "8", "N/A"],
    "answer": "B",
    "answer_index": 0,
    "cot_content": "A: Let's think step by step. Hexa is Greek for six. The answer is (B).",
    "category": "math",
}
GSM8K = {"id": "g1", "question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}
ROWS = {
    "arc": ARC,
    "commonsense_qa": CQA,
    "ecqa": ECQA,
    "hellaswag": HELLASWAG,
    "proofwriter": PROOFWRITER,
    "mmlu_pro": MMLU_PRO,
    "gsm8k": GSM8K,
}


def read(task: str, tmp_path: Path, *rows: object) -> list[Question]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TASKS[task].read(path)


@pytest.mark.parametrize("file", FILES)
def test_every_real_row_is_read_and_its_gold_graded_right(file: str, shared: Path):
    name, rows = FILES[file]
    task = TASKS[name]
    questions = task.read(shared / file)
    assert len(questions) == rows
    stated = [(task.extract(task.answer_form.replace("{gold}", q.gold), q), q) for q in questions]
    without = {"unanswered": WITHOUT_GOLD[file]} if file in WITHOUT_GOLD else {}
    assert Counter(task.grade(stated)) == {"right": rows - sum(without.values()), **without}
    if file == "math/train.jsonl":
        return  # its other golds need algebra: tests/test_math.py has that of MATH-500
    # The gold of the next row, where it is another answer, and one that this row could have.
    others = [
        (b.gold, a)
        for a, b in zip(questions, [*questions[1:], questions[0]], strict=True)
        if b.gold.removeprefix("x=") != a.gold.removeprefix("x=") and (not a.choices or b.gold in a.options)
    ]
    assert Counter(task.grade(others)) == {"wrong": len(others)} and len(others) > rows / 2


def test_rows_become_questions(tmp_path: Path):
    [arc] = read("arc", tmp_path, ARC)
    assert arc == Question("a1", ARC["question"], "B", ("a nail", "a cork", "a coin"))
    assert arc.asked == "Which of these floats on water?\nA. a nail\nB. a cork\nC. a coin"
    assert read("commonsense_qa", tmp_path, CQA) == [
        Question("c1", "Where do rivers end?", "B", ("attic", "sea"))
    ]
    [ecqa] = read("ecqa", tmp_path, ECQA)
    assert (ecqa.gold, ecqa.solution, ecqa.split) == ("B", "Rivers flow down to the sea.", "train")
    [hellaswag] = read("hellaswag", tmp_path, HELLASWAG)
    assert hellaswag.text == "Baking: A woman kneads dough on a board. The dough"
    assert hellaswag.choices == ("sings.", "rests. Then it rises.")
    assert hellaswag.cluster == "activitynet~v_1"
    one, other = read("proofwriter", tmp_path, PROOFWRITER, PROOFWRITER | {"id": "p2", "question": "Is he?"})
    assert one.cluster == other.cluster == "Mara is tall."
    assert arc.cluster == "a1"
    assert (hellaswag.id, hellaswag.gold, hellaswag.split) == ("7", "B", "validation")
    [proofwriter] = read("proofwriter", tmp_path, PROOFWRITER)
    assert proofwriter.asked == (
        "Mara is tall.\nIs it true, false, or unknown? Mara is tall.\nA. True\nB. False\nC. Unknown"
    )
    [mmlu_pro] = read("mmlu_pro", tmp_path, MMLU_PRO)
    assert mmlu_pro.choices == ("5", "6", "8")
    assert (mmlu_pro.gold, mmlu_pro.subject, mmlu_pro.solution) == ("B", "math", "Hexa is Greek for six.")
    [gsm8k] = read("gsm8k", tmp_path, GSM8K)
    assert (gsm8k.gold, gsm8k.solution) == ("4", "2 + 2 = 4")
    assert TASKS["gsm8k"].worked(gsm8k) == "2 + 2 = 4\nThe answer is 4."


def test_ecqas_own_table_is_read(tmp_path: Path):
    path = tmp_path / "cqa_data_test.csv"
    header = "q_no,q_concept,q_text,q_op1,q_op2,q_op3,q_op4,q_op5,q_ans,taskA_pos,taskA_neg,taskB"
    path.write_text(f'{header}\nx1,river,"Where, then?",attic,sea,sky,pan,bag,sea,"It ends there.",,\n')
    [question] = TASKS["ecqa"].read(path)
    assert question == Question(
        "x1", "Where, then?", "B", ("attic", "sea", "sky", "pan", "bag"), solution="It ends there."
    )
    path.write_text(f"{header}\nx1,river,Where?,attic,sea,sky,pan,bag,moon,,,\n")
    with pytest.raises(ValueError, match=r"test\.csv:2: the answer 'moon' is none of the options"):
        TASKS["ecqa"].read(path)
    path.write_text(f"{header}\nx1,river\n")
    with pytest.raises(ValueError, match=r"test\.csv:2: has another number of columns"):
        TASKS["ecqa"].read(path)


BAD = [
    ("arc", ARC | {"answerKey": "4"}, "the right label '4' is none of 1, 2, 3"),
    ("arc", ARC | {"choices": {"text": ["a", "b"], "label": ["A"]}}, "2 options need as many labels"),
    ("arc", ARC | {"choices": {"text": ["a", "b"], "label": ["A", "A"]}}, "two options have one label"),
    ("arc", ARC | {"choices": ["a", "b"]}, "'choices' must be an object"),
    ("arc", ARC | {"choices": {"text": ["a", " "], "label": ["1", "2"]}}, "an option must be text and not"),
    ("arc", {k: v for k, v in ARC.items() if k != "answerKey"}, "no 'answerKey'"),
    ("commonsense_qa", CQA | {"question": {"stem": "?", "choices": ["a"]}}, "must be a list of objects"),
    ("commonsense_qa", {k: v for k, v in CQA.items() if k != "answerKey"}, "no 'answerKey'"),
    ("ecqa", ECQA | {"answerKey": "C"}, "the right label 'C' is none of A, B"),
    ("hellaswag", HELLASWAG | {"label": 2}, "'label' must be a number below 2, found '2'"),
    ("hellaswag", HELLASWAG | {"label": ""}, "'label' is empty"),
    ("hellaswag", HELLASWAG | {"endings": "sings"}, "the options must be a list"),
    ("proofwriter", PROOFWRITER | {"answer": "D"}, "the right label 'D' is none of A, B, C"),
    ("proofwriter", PROOFWRITER | {"options": ["True", "False"]}, "an option must be text"),
    ("proofwriter", PROOFWRITER | {"context": ""}, "'context' is empty"),
    ("mmlu_pro", MMLU_PRO | {"answer": "D"}, "the right label 'D' is none of A, B, C"),
    ("mmlu_pro", MMLU_PRO | {"options": ["5"]}, "there must be 2 to 26 options, found 1"),
    ("mmlu_pro", {k: v for k, v in MMLU_PRO.items() if k != "category"}, "no 'category'"),
]


@pytest.mark.parametrize(("task", "row", "said"), BAD)
def test_a_bad_row_is_named_by_file_and_line(task: str, row: dict, said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: .*{said}"):
        read(task, tmp_path, ROWS[task], row)


def test_help_texts_name_the_tasks_there_are():
    assert get_args(TaskName) == (*TASKS,)


@pytest.mark.parametrize("task", ROWS)
def test_an_id_that_is_there_twice_is_refused(task: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: id '\w+' is there twice"):
        read(task, tmp_path, ROWS[task], ROWS[task])


def test_tables_come_in_several_formats(tmp_path: Path):
    rows = [MMLU_PRO, MMLU_PRO | {"question_id": 4}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (tmp_path / "t.json").write_text(json.dumps(rows))
    task = TASKS["mmlu_pro"]
    assert task.read(tmp_path / "t.parquet") == task.read(tmp_path / "t.json")
    assert len(task.read(tmp_path / "t.json")) == 2
    for name, text, said in (
        ("a.json", "3", "expected a list of objects"),
        ("b.json", "[1]", r"b\.json:1: expected an object, found 1"),
        ("c.json", "[", "not JSON"),
        ("d.json", "[]", "holds no rows"),
        ("e.csv", "", "holds no rows"),
        ("f.parquet", "", "not Parquet"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=said):
            task.read(tmp_path / name)


# ---- Demonstrations ----


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_our_own_shots_state_answers_that_their_task_reads(task: Task):
    own = load_demonstrations(task.demonstrations)
    assert len(own.shots) >= 3 and own.instruction
    for shot in own.shots:
        options = tuple(line[3:] for line in shot.question.splitlines() if line[1:3] == ". ")
        question = Question("shot", shot.question.partition("\n")[0], choices=options)
        *steps, last = shot.solution.splitlines()
        assert not any(task.extract(step, question) for step in steps)
        answer = task.extract(last, question)
        assert answer is not None and task.grade([(answer, replace(question, gold=answer))]) == ["right"]
