"""A question with options as a text and the ways in which it may go on, for choice by likelihood.

The forms are those of lm-evaluation-harness (0.4.13), whose tasks of these names define the usual figures:
hellaswag, arc_challenge, commonsense_qa and leaderboard_mmlu_pro, without demonstrations. Blanks around a
question's text and its options were taken off as the rows were read, which it does not do in MMLU-Pro. It has
no ProofWriter; that is asked as ARC is.
"""

from dataclasses import dataclass

from rationalyst_jax.tasks.question import Question


@dataclass(frozen=True)
class Cloze:
    """context: what stands before; choices: in the order of the question's options, what follows after it and
    a blank."""

    context: str
    choices: tuple[str, ...]


def ending(question: Question) -> Cloze:
    """The text, which its options end (HellaSwag)."""
    return Cloze(question.text, question.choices)


def answer_text(question: Question) -> Cloze:
    """The text as a question, its options as answers that the context does not show (ARC, ProofWriter)."""
    return Cloze(f"Question: {question.text}\nAnswer:", question.choices)


def answer_letter(question: Question) -> Cloze:
    """A question with its options, and their letters as answers (CommonsenseQA)."""
    return Cloze(f"Question: {question.asked}\nAnswer:", tuple(question.options))


def exam_letter(question: Question) -> Cloze:
    """As `answer_letter`, with nothing before the text (MMLU-Pro)."""
    return Cloze(f"{question.asked}\nAnswer:", tuple(question.options))
