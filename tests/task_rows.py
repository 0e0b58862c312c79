"""Rows of every task in the form of its original files, in words of our own."""

from typing import Any

LETTERS = ["A", "B", "C", "D"]


def _choice(number: int) -> tuple[str, list[str], int]:
    """A question, its options, and which is right."""
    question = f'Which of these numbers is "{number}"?\nMind the sign −: it’s not {number + 1}.'
    return question, [str(number - 1), f"{number}", f"{number + 2} %", "none\tof them"][: 3 + number % 2], 1


def original_rows(task: str, split: str, count: int) -> list[dict[str, Any]]:
    """`count` rows of a task; those of another split are other rows. Every second one has an id, where the
    task's rows may lack it."""
    start = {"train": 0, "validation": 1000, "test": 2000}[split]
    return [_ROWS[task](start + i, split) for i in range(count)]


def _gsm8k(i: int, split: str) -> dict[str, Any]:
    row = {"question": f"Ünal has {i} €.\nHow many has he?", "answer": f"He has <<{i}={i}>>{i}.\n#### {i}"}
    return row | ({"id": f"{split} é{i}"} if i % 2 else {})


def _math(i: int, split: str) -> dict[str, Any]:
    return {
        "problem": f"What is ${i} + \\frac{{1}}{{2}}$?",
        "solution": f"It is $\\boxed{{\\frac{{{2 * i + 1}}}{{2}}}}$.",
        "level": f"Level {1 + i % 5}",
        "type": "Algebra",
        "unique_id": f"{split}/algebra/{i}.json",
    }


def _commonsense(i: int, split: str) -> dict[str, Any]:
    question, options, right = _choice(i)
    listed = [{"label": label, "text": text} for label, text in zip(LETTERS, options, strict=False)]
    nested = {"stem": question, "choices": listed, "question_concept": "number"}
    return {"id": f"c{i}", "question": nested, "answerKey": LETTERS[right]}


def _ecqa(i: int, split: str) -> dict[str, Any]:
    return _arc(i, split) | {
        "answerKey": "B",
        "choices": {"text": _choice(i)[1], "label": LETTERS[: len(_choice(i)[1])]},
        "explanation": f"{i} is {i}.",
        "ecqa_author_split": split,
    }


def _hellaswag(i: int, split: str) -> dict[str, Any]:
    first = f"A man counts to {i}. He is tired."
    second = "then he" if i % 2 else ""
    return {
        "ind": i,
        "activity_label": "Counting",
        "ctx_a": first,
        "ctx_b": second,
        "ctx": f"{first} {second}".strip(),
        "split": {"validation": "val"}.get(split, split),
        "split_type": "indomain",
        "label": i % 4,
        "endings": [f"says {i + k}." for k in range(4)],
        "source_id": f"activitynet~v_{i}" if i % 2 else f"wikihow~{i}",
    }


def _proofwriter(i: int, split: str) -> dict[str, Any]:
    return {
        "id": f"P{i}",
        "context": f"Anne is {i}. If someone is {i} then they are old.",
        "question": "Is the statement true, false or unknown? Anne is old.",
        "options": ["A) True", "B) False", "C) Unknown"],
        "answer": "A",
    }


def _arc(i: int, split: str) -> dict[str, Any]:
    question, options, right = _choice(i)
    labels = (["1", "2", "3", "4"] if i % 3 == 0 else LETTERS)[: len(options)]
    return {
        "id": f"arc {i}",
        "question": question,
        "choices": {"text": options, "label": labels},
        "answerKey": labels[right],
    }


def _mmlu_pro(i: int, split: str) -> dict[str, Any]:
    question, options, right = _choice(i)
    return {
        "question_id": i,
        "question": question,
        "options": [*options, "N/A"],
        "answer": LETTERS[right],
        "answer_index": right,
        "cot_content": f"A: Let's think step by step. It is {i}. The answer is (B)." if i % 2 else "",
        "category": "math",
        "src": "own",
    }


_ROWS = {
    "gsm8k": _gsm8k,
    "math": _math,
    "math500": _math,
    "commonsense_qa": _commonsense,
    "ecqa": _ecqa,
    "hellaswag": _hellaswag,
    "proofwriter": _proofwriter,
    "arc": _arc,
    "mmlu_pro": _mmlu_pro,
}
