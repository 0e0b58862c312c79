"""A question with its gold answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One row of a task: what the model is asked, and the gold answer in the task's own form."""

    id: str
    text: str
    answer: str
