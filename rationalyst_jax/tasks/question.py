"""A question with its gold answer, and what became of an answer to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

# What became of a question. An answer that nobody could compare with the gold one in the time there was, such
# as an expression that a computer algebra system takes minutes for, is "undecided".
Verdict = Literal["right", "wrong", "undecided", "unanswered"]


@dataclass(frozen=True)
class Question:
    """One row of a task.

    id is unique in a run: sampling is seeded by it. text: the question without its options. gold: the answer,
    in the task's own form (of a choice its letter); empty where nobody knows it. choices: the texts of the
    options, where there are any. subject and level (0: not known): where the data says them. solution: a
    worked solution or an explanation that the data has, with or without a statement of the answer. split: of
    the data set, where the row itself says it. passage: what the question shares with others of its set (a
    text or the name of one), where it does: such questions are not independent.
    """

    id: str
    text: str
    gold: str = ""
    choices: tuple[str, ...] = ()
    subject: str = ""
    level: int = 0
    solution: str = ""
    split: str = ""
    passage: str = ""

    @property
    def cluster(self) -> str:
        """Names the questions that say less together than as many others: of one passage, else this one."""
        return self.passage or self.id

    @property
    def options(self) -> Mapping[str, str]:
        """The options' texts by their letters, from A on."""
        return dict(zip(ascii_uppercase, self.choices, strict=False))

    @property
    def asked(self) -> str:
        """What a model is asked: the text, then each option on a line of its own."""
        return "\n".join([self.text, *(f"{letter}. {text}" for letter, text in self.options.items())])
