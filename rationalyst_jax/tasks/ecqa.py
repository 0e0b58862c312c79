"""CommonsenseQA (Talmor et al. 2019) and ECQA (Aggarwal et al. 2021), which explains its answers.

The paper's "ECQA" is the validation split of CommonsenseQA, by its released scripts: the task
`commonsense_qa`. ECQA's authors divided the same questions anew, and have a test split of their own: the task
`ecqa`. The two overlap and must not be compared.
"""

from dataclasses import replace

from rationalyst_jax.files.rows import Row, filled_field, id_field, text_field
from rationalyst_jax.tasks import choices, cloze
from rationalyst_jax.tasks.options import labeled_options, object_field, option_texts
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Paper, Task, grade_each


def question(row: Row, place: str, default_id: str) -> Question:
    """A row as a question, in any of the three forms in which the data are published.

    CommonsenseQA's own: {"id", "answerKey", "question": {"stem", "choices": [{"label", "text"}]}}. Flat:
    {"id", "question", "choices": {"label", "text"}, "answerKey"}, perhaps with ECQA's "explanation" and
    "ecqa_author_split". ECQA's own table: q_no, q_text, q_op1 to q_op5, q_ans, taskA_pos.

    Raises ValueError naming the place where a key is missing, or the answer is none of the options.
    """
    if "q_text" in row:
        return _of_table(row, place, default_id)
    key = id_field(row, "answerKey", place)
    name = id_field(row, "id", place, default=default_id)
    if isinstance(row.get("question"), dict):
        nested = object_field(row, "question", place)
        listed = nested.get("choices")
        if not isinstance(listed, list) or not all(isinstance(option, dict) for option in listed):
            raise ValueError(f"{place}: 'choices' must be a list of objects, found {listed!r:.60}")
        labels = [option.get("label") for option in listed]
        options, gold = labeled_options(labels, [option.get("text") for option in listed], key, place)
        return Question(name, filled_field(nested, "stem", place).strip(), gold, options)
    flat = object_field(row, "choices", place)
    options, gold = labeled_options(flat.get("label"), flat.get("text"), key, place)
    return Question(
        name,
        filled_field(row, "question", place).strip(),
        gold,
        options,
        solution=text_field(row, "explanation", place, default="").strip(),
        split=text_field(row, "ecqa_author_split", place, default=""),
    )


def _of_table(row: Row, place: str, default_id: str) -> Question:
    texts = [row[key] for key in sorted(row) if key.startswith("q_op")]
    options = option_texts(texts, place)
    answer = filled_field(row, "q_ans", place).strip()
    if answer not in options:
        raise ValueError(f"{place}: the answer {answer!r:.60} is none of the options")
    return Question(
        id_field(row, "q_no", place, default=default_id),
        filled_field(row, "q_text", place).strip(),
        "ABCDEFGHIJ"[options.index(answer)],
        options,
        solution=text_field(row, "taskA_pos", place, default="").strip(),
    )


COMMONSENSE_QA = Task(
    "commonsense_qa",
    title="ECQA (CommonsenseQA validation)",
    question=question,
    extract=choices.extract,
    flexible=choices.flexible,
    grade=grade_each(choices.correct),
    split="validation",
    size=1221,
    references=("train",),
    homepage="https://www.tau-nlp.org/commonsenseqa",
    license="MIT",
    demonstrations="ecqa",
    paper=Paper(base=72.6, rationalyst=75.2, shots=8),
    cloze=cloze.answer_letter,
)
ECQA = replace(
    COMMONSENSE_QA,
    name="ecqa",
    title="ECQA (its own test file)",
    split="test",
    size=2194,
    homepage="https://github.com/dair-iitd/ECQA-Dataset",
    license="CDLA-Sharing-1.0",
    paper=None,
)
