"""What files of solutions answer: our traces, and those of other people's programs.

Two readings of each: the strict one takes what a solution states as its answer, the flexible one the last
thing in it that could be one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rationalyst_jax.files.rows import Row, id_field, read_table, text_field
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Task


@dataclass(frozen=True)
class Answer:
    """The answer of one solution by both readings; None: there is none."""

    strict: str | None
    flexible: str | None


def read_answers(path: Path, questions: Sequence[Question], task: Task) -> dict[str, list[Answer]]:
    """The answers in a JSONL file, by the ids of their questions: one each, or one for each sample.

    Three kinds of rows are known. Ours: {"id", "answer"}, with "steps" and "samples" where `rationalyst
    reason` wrote them. lm-evaluation-harness' (`--log_samples`): {"doc", "resps", ...}, generated texts or
    the log-likelihoods of options. The released scripts': {"question", "answer", "full_response"}. The last
    two are matched with the questions by their texts.

    Raises ValueError naming the row that is none of these, repeats one, or is about no question.
    """
    by_text = _Texts(questions)
    by_id = {question.id: question for question in questions}
    found: dict[str, list[Answer]] = {}
    seen: set[Any] = set()
    for place, row in read_table(path):
        if "doc" in row and "resps" in row:
            asked = task.question(_object(row, "doc", place), place, "doc")
            question = by_text.find(asked.asked, place)
            key = row.get("doc_id", question.id)
            if key in seen:  # the same texts once more, by another of the harness' filters
                continue
            answers = [_of_harness(task, question, sample, place) for sample in _samples(row, place)]
        elif "full_response" in row:
            question = by_text.find(text_field(row, "question", place), place)
            key = question.id
            answers = [_of_text(task, question, text_field(row, "full_response", place))]
        else:
            key = id_field(row, "id", place)
            question = by_id.get(key, Question(key, ""))
            answers = [_of_trace(task, question, row, place)]
        if key in seen:
            raise ValueError(f"{place}: question {question.id!r} has two traces")
        seen.add(key)
        found.setdefault(question.id, []).extend(answers)
    return found


# ---- Rows ----


def _of_text(task: Task, question: Question, text: str) -> Answer:
    return Answer(task.extract(text, question), task.flexible(text, question))


def _of_trace(task: Task, question: Question, row: Row, place: str) -> Answer:
    """A trace has been read strictly when it was made. Where solutions vote, they vote by both readings."""
    strict = row.get("answer")
    if "answer" not in row or not isinstance(strict, str | None):
        raise ValueError(
            f"{place}: 'answer' must be text or null, found {row.get('answer', 'no such key')!r:.60}"
        )
    try:
        if row.get("strategy") == "self_consistency":
            texts = ["\n".join(sample["steps"]) for sample in row["samples"]]
        else:
            texts = ["\n".join(step["text"] for step in row.get("steps", ()))]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{place}: not a trace ({error!r})") from None
    votes = Counter(answer for text in texts if (answer := task.flexible(text, question)) is not None)
    return Answer(strict, votes.most_common(1)[0][0] if votes else strict)


def _samples(row: Row, place: str) -> Sequence[Any]:
    """What the harness got for one document: a text for each sample, or all options' log-likelihoods."""
    try:
        requests = row["resps"]
        if isinstance(requests[0][0], str):
            return [text for request in requests for text in request]
        return [[float(request[0][0]) for request in requests]]
    except (TypeError, IndexError, ValueError, KeyError):
        raise ValueError(f"{place}: 'resps' holds neither texts nor log-likelihoods") from None


def _of_harness(task: Task, question: Question, sample: Any, place: str) -> Answer:
    if isinstance(sample, str):
        return _of_text(task, question, sample)
    if len(sample) != len(question.choices):
        raise ValueError(f"{place}: {len(sample)} log-likelihoods for {len(question.choices)} options")
    letter = list(question.options)[sample.index(max(sample))]
    return Answer(letter, letter)


def _object(row: Row, key: str, place: str) -> Row:
    if not isinstance(row[key], dict):
        raise ValueError(f"{place}: {key!r} must be an object, found {row[key]!r:.60}")
    return row[key]


# ---- Questions by their texts ----


class _Texts:
    """Finds questions by what was asked: their whole text, or that of the question without its options."""

    def __init__(self, questions: Sequence[Question]):
        self.whole = _index(questions, lambda question: question.asked)
        self.stems = _index(questions, lambda question: question.text)

    def find(self, text: str, place: str) -> Question:
        """Raises ValueError where no question, or more than one, has this text."""
        plain = _plain(text)
        among = self.whole.get(plain) or self.stems.get(plain)
        if among is None:  # options in a form of their own stand behind the question
            starts = [stem for stem in self.stems if plain.startswith(stem)]
            among = self.stems[max(starts, key=len)] if starts else []
        if len(among) != 1:
            raise ValueError(f"{place}: {len(among)} questions have the text {' '.join(text.split())!r:.60}")
        return among[0]


def _index(questions: Iterable[Question], text_of: Callable[[Question], str]) -> Mapping[str, list[Question]]:
    index: dict[str, list[Question]] = {}
    for question in questions:
        index.setdefault(_plain(text_of(question)), []).append(question)
    return index


def _plain(text: str) -> str:
    words = " ".join(text.split())
    return words.removeprefix("Question:").removesuffix("Answer:").strip()
