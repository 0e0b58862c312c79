"""ARC-Challenge (Clark et al. 2018, arXiv 1803.05457): science questions with 3 to 5 options.

Some original rows have the labels 1 to 4. A model is shown letters in every row, and gold is a letter.
"""

from rationalyst_jax.files.rows import Row, filled_field, id_field
from rationalyst_jax.tasks import choices, cloze
from rationalyst_jax.tasks.options import labeled_options, object_field
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Paper, Task, grade_each


def question(row: Row, place: str, default_id: str) -> Question:
    """A row {"id", "question", "choices": {"text", "label"}, "answerKey"} as a question.

    Raises ValueError naming the place where a key is missing, or the answer is no label of the options.
    """
    listed = object_field(row, "choices", place)
    key = id_field(row, "answerKey", place)
    options, gold = labeled_options(listed.get("label"), listed.get("text"), key, place)
    name = id_field(row, "id", place, default=default_id)
    return Question(name, filled_field(row, "question", place).strip(), gold, options)


TASK = Task(
    "arc",
    title="ARC-Challenge",
    question=question,
    extract=choices.extract,
    flexible=choices.flexible,
    grade=grade_each(choices.correct),
    split="test",
    size=1172,
    references=("train",),
    homepage="https://allenai.org/data/arc",
    license="CC-BY-SA-4.0",
    demonstrations="arc",
    paper=Paper(base=77.6, rationalyst=80.7, shots=8),
    cloze=cloze.answer_text,
)
