"""Which documents hold questions that models are to be evaluated on?

A document meets a question when both have 13 words in common, one after the other: an n-gram (Brown et al.
2020). N-grams are compared twice, with numbers as they are and with all numbers masked; the latter also finds
the question with other numbers. Case, punctuation and white space do not count (`words.py`).

N-grams that are mostly numbers say nothing, because any table may have them: some words must be no numbers. A
question of fewer than 13 words is looked for as a whole, and one of few words with the beginning of its
options. Its numbers are not masked then: short questions of one kind are alike but for their numbers.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from rationalyst_jax.files.rows import Row
from rationalyst_jax.mine.config import DecontaminateConfig
from rationalyst_jax.mine.documents import Document
from rationalyst_jax.mine.words import Hashes, are_numbers, hash_ngrams, hash_words, masked, words_of
from rationalyst_jax.tasks.question import Question

# Why a document is dropped: it has the words of a question, or has them with other numbers.
SAME = "question"
MASKED = "question_with_other_numbers"


@dataclass(frozen=True)
class Met:
    """A question that a document meets; of those of a task the one of which it has the most n-grams.

    shared: how many different n-grams of the question the document has, of `of`. masked: whether they are the
    same with masked numbers only. words: the first of them, as the document has it.
    """

    task: str
    question: str
    shared: int
    of: int
    masked: bool
    words: str


class QuestionIndex:
    """The n-grams of questions by tasks.

    too_short: how many questions of each task have too few words to be looked for.
    """

    def __init__(self, questions: Mapping[str, Sequence[Question]], config: DecontaminateConfig):
        self.too_short = dict.fromkeys(questions, 0)
        self._names: list[tuple[str, str]] = []  # task and id of each question
        self._counts: dict[tuple[bool, int], int] = {}  # n-grams, masked or not, of each question
        found: dict[bool, dict[int, list[tuple[int, Hashes]]]] = {False: {}, True: {}}
        for task, of_task in questions.items():
            for question in of_task:
                ngrams = list(_ngrams(question, config))
                self.too_short[task] += not ngrams
                for is_masked, length, hashes in ngrams:
                    self._counts[is_masked, len(self._names)] = len(hashes)
                    found[is_masked].setdefault(length, []).append((len(self._names), hashes))
                self._names.append((task, question.id))
        self._tables = {
            is_masked: {length: _Table(ngrams) for length, ngrams in by_length.items()}
            for is_masked, by_length in found.items()
        }

    def met_by(self, text: str) -> list[Met]:
        """The questions that a text meets, at most one of each task."""
        words = words_of(text)
        shared: dict[tuple[bool, int], list[str]] = defaultdict(list)
        hashes = hash_words(words)
        for is_masked, tables in self._tables.items():
            for length, ngrams in hash_ngrams(masked(hashes) if is_masked else hashes, tables):
                for place, question in tables[length].find(ngrams):
                    shared[is_masked, question].append(" ".join(words[place : place + length]))
        best: dict[str, Met] = {}
        # Those with their own numbers first, then those that share most.
        for is_masked, question in sorted(shared, key=lambda key: (key[0], -len(shared[key]), key[1])):
            task, id = self._names[question]
            ngrams = shared[is_masked, question]
            met = Met(task, id, len(ngrams), self._counts[is_masked, question], is_masked, ngrams[0])
            best.setdefault(task, met)
        return list(best.values())


def judge(document: Document, index: QuestionIndex, config: DecontaminateConfig) -> Row | None:
    """What is to be said of a document: None where it meets no question, or whether it is kept, the reason
    why not, and the questions it meets."""
    met = index.met_by(document.text)
    if not met:
        return None
    reason = MASKED if all(question.masked for question in met) else SAME
    kept = reason == MASKED and not config.drop_masked
    return {"kept": kept, "reason": reason, "met": [asdict(question) for question in met]}


@dataclass(frozen=True)
class Contamination:
    """What was found of one task: how many questions there are, how many of them are too short to be looked
    for, how many different ones documents meet (of each document the one that it has most of), and how many
    documents meet one, with its numbers or only with masked ones."""

    questions: int
    too_short: int
    questions_met: int
    documents: int
    documents_masked: int


def contamination(
    verdicts: Iterable[Row], questions: Mapping[str, Sequence[Question]], index: QuestionIndex
) -> dict[str, Contamination]:
    """What was found of each task, from all that `judge` said."""
    met: dict[str, set[str]] = {task: set() for task in questions}
    documents = Counter[tuple[str, bool]]()
    for row in verdicts:
        for question in row["met"]:
            met[question["task"]].add(question["question"])
            documents[question["task"], question["masked"]] += 1
    return {
        task: Contamination(
            questions=len(of_task),
            too_short=index.too_short[task],
            questions_met=len(met[task]),
            documents=documents[task, False],
            documents_masked=documents[task, True],
        )
        for task, of_task in questions.items()
    }


class _Table:
    """N-grams of one length, sorted by their hashes, each with the number of its question."""

    def __init__(self, ngrams: Sequence[tuple[int, Hashes]]):
        hashes = np.concatenate([hashes for _, hashes in ngrams])
        owners = np.repeat([number for number, _ in ngrams], [len(hashes) for _, hashes in ngrams])
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._owners = owners[order]
        # By the first bits of a hash, whether any n-gram begins so: most are settled there, without a search.
        self._shift = np.uint64(64 - (32 * len(order)).bit_length())
        self._begins = np.zeros(1 << int(64 - self._shift), bool)
        self._begins[hashes >> self._shift] = True

    def find(self, ngrams: Hashes) -> list[tuple[int, int]]:
        """The first place of each n-gram that is in the table, with each question that has it."""
        places = np.flatnonzero(self._begins[ngrams >> self._shift])
        begin = np.searchsorted(self._hashes, ngrams[places], "left")
        end = np.searchsorted(self._hashes, ngrams[places], "right")
        first: dict[int, int] = {}  # place of an n-gram, by where the table has it
        for i in np.flatnonzero(begin < end):
            first.setdefault(int(begin[i]), int(i))
        return [
            (int(places[i]), question)
            for i in first.values()
            for question in self._owners[begin[i] : end[i]].tolist()
        ]


def _ngrams(question: Question, config: DecontaminateConfig) -> Iterator[tuple[bool, int, Hashes]]:
    """What is looked for of a question: its different n-grams, with masked numbers (True) and without,
    and their length. Nothing where it is too short."""
    hashes = hash_words(words_of(question.text))
    short = len(hashes) < config.ngram
    if short and _words_in(hashes, len(hashes)).sum() < config.min_words:
        hashes = hash_words(words_of(question.asked))[: config.ngram]
    length = min(len(hashes), config.ngram)
    telling = _words_in(hashes, length) >= config.min_words
    if telling.any():
        for is_masked in (False,) if short else (False, True):
            [(_, ngrams)] = hash_ngrams(masked(hashes) if is_masked else hashes, [length])
            yield is_masked, length, np.unique(ngrams[telling])


def _words_in(hashes: Hashes, length: int) -> NDArray[np.int64]:
    """How many words of each n-gram of this length are no numbers."""
    so_far = np.concatenate([[0], np.cumsum(~are_numbers(hashes))])
    return so_far[length:] - so_far[: len(so_far) - length]
