"""A question with its gold answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One row of a task.

    id is unique in a run: sampling is seeded by it. text: what the model is asked. gold: the answer, in the
    task's own form; empty where nobody knows it.
    """

    id: str
    text: str
    gold: str = ""
