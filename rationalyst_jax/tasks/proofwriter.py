"""ProofWriter (Tafjord et al. 2021, arXiv 2012.13048), depth 5, open world, in the form of Logic-LLM (Pan et
al. 2023): does a statement follow from facts and rules?"""

import re

from rationalyst_jax.files.rows import Row, filled_field, id_field
from rationalyst_jax.tasks import choices, cloze
from rationalyst_jax.tasks.options import labeled_options
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Paper, Task, grade_each

OPTION = re.compile(r"\s*([A-Z])\)\s*(\S.*)")


def question(row: Row, place: str, default_id: str) -> Question:
    """A row {"id", "context", "question", "options": ["A) True", ...], "answer"} as a question. Its text is
    the context, a line break, and the row's question; several questions share a context.

    Raises ValueError naming the place where a key is missing, or the answer is none of the options.
    """
    listed = row.get("options")
    found = [OPTION.fullmatch(str(option)) for option in listed] if isinstance(listed, list) else []
    options, gold = labeled_options(
        [match[1] if match else None for match in found],
        [match[2] if match else None for match in found],
        id_field(row, "answer", place),
        place,
    )
    context = filled_field(row, "context", place).strip()
    asked = filled_field(row, "question", place).strip()
    name = id_field(row, "id", place, default=default_id)
    return Question(name, f"{context}\n{asked}", gold, options, passage=context)


TASK = Task(
    "proofwriter",
    title="ProofWriter",
    question=question,
    extract=choices.extract,
    flexible=choices.flexible,
    grade=grade_each(choices.correct),
    split="test",
    size=600,
    references=("train",),
    homepage="https://github.com/teacherpeterpan/Logic-LLM",
    license="MIT",
    demonstrations="proofwriter",
    paper=Paper(base=86.4, rationalyst=90.7, shots=3),
    cloze=cloze.answer_text,
)
