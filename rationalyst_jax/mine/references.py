"""What reasoning looks like: training questions of the tasks, each set of them a centroid.

A document is like reasoning when its vector is near the references': near the mean of the sets' centroids, of
which each weighs the same however many questions it has, or near that of any one set. Part of every set is
held out: on it the threshold is calibrated, and its recall measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rationalyst_jax.files.prepared import Source, is_prepared, wanted
from rationalyst_jax.files.settings import digest
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.sources import read_questions
from rationalyst_jax.tasks.splits import sorted_into_splits, split_called
from rationalyst_jax.tasks.task import Task

Centroids = Literal["mean", "nearest"]


@dataclass(frozen=True)
class ReferenceSet:
    """Texts of one task's training questions: those that make the centroid, and those held out."""

    name: str
    texts: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """How near a window is to the references: its cosine, and the name of the nearest set."""

    cosine: float
    nearest: str


@dataclass(frozen=True)
class References:
    """The centroids of reference sets, unit vectors float32 `[sets, D]`, by `names`."""

    names: tuple[str, ...]
    centroids_SD: np.ndarray
    rule: Centroids

    def best(self, windows_XD: np.ndarray) -> tuple[int, Fit]:
        """The window nearest to the references, of a text's unit vectors `[windows, D]`, and how near."""
        cosines_XS = windows_XD @ self.centroids_SD.T
        if self.rule == "mean":
            mean_D = self.centroids_SD.mean(axis=0)
            cosines_X = windows_XD @ (mean_D / np.linalg.norm(mean_D))
        else:
            cosines_X = cosines_XS.max(axis=1)
        best = int(cosines_X.argmax())
        return best, Fit(float(cosines_X[best]), self.names[int(cosines_XS[best].argmax())])


def read_references(
    sources: Mapping[str, Source], most: int, held_out: float, seed: int
) -> list[ReferenceSet]:
    """The reference set of each task that `sources` names, of at most `most` questions, drawn by `seed`.

    A source is a file of the task's own rows, SPLIT=FILE, a folder, or tfds:NAME[:SPLIT][@DIR]. held_out: the
    share of a set that is held out, at least one question. Raises ValueError as the task's reader does, for
    an unknown task, where nothing says which split a question is of, or none is of one that mining may learn
    from, and for a set of fewer than two.
    """
    if not sources:
        raise ValueError("prefilter: no references: name at least one task and its training questions")
    sets = []
    for name, source in sources.items():
        texts = [_text(question) for question in _training_questions(task_named(name), source)]
        if len(texts) < 2:
            raise ValueError(f"{source}: holds {len(texts)} question of {name}, at least two are needed")
        order = np.random.default_rng([seed, *name.encode()]).permutation(len(texts))[:most].tolist()
        out = max(1, min(round(held_out * len(order)), len(order) - 1))
        chosen = [texts[i] for i in order]
        sets.append(ReferenceSet(name, tuple(chosen[out:]), tuple(chosen[:out])))
    return sets


def references_digest(sets: Sequence[ReferenceSet]) -> dict[str, str]:
    """A short fingerprint of each set's texts."""
    return {one.name: digest(text.encode() for text in (*one.texts, *one.held_out)) for one in sets}


def reference_centroids(
    sets: Sequence[ReferenceSet], vectors: Mapping[str, np.ndarray], rule: Centroids
) -> References:
    """The centroid of each set: the mean of its texts' vectors, at length 1, so that a set whose texts are
    like each other weighs no more than another. vectors: of each text those of its windows, `[windows, D]`.
    """
    centroids = []
    for one in sets:
        of_texts_XD = np.stack([vectors[text].mean(axis=0) for text in one.texts])
        mean_D = of_texts_XD.mean(axis=0)
        centroids.append(mean_D / np.linalg.norm(mean_D))
    return References(tuple(one.name for one in sets), np.stack(centroids), rule)


def calibrated_alpha(cosines: Mapping[str, Sequence[float]], recall: float) -> float:
    """The largest threshold with at least so much recall, the mean over the sets of the share of `cosines`
    (of their held-out texts) that reach it."""
    candidates = sorted({cosine for of_set in cosines.values() for cosine in of_set}, reverse=True)
    low, high = 0, len(candidates) - 1  # recall grows along the candidates, up to 1 at the last
    while low < high:
        middle = (low + high) // 2
        if mean_recall(cosines, candidates[middle]) >= recall:
            high = middle
        else:
            low = middle + 1
    return candidates[low]


def mean_recall(cosines: Mapping[str, Sequence[float]], alpha: float) -> float:
    """Of all sets, each weighing the same."""
    return float(np.mean([recall_of(of_set, alpha) for of_set in cosines.values()]))


def recall_of(cosines: Sequence[float], alpha: float) -> float:
    """The share that reaches the threshold."""
    return float(np.mean(np.asarray(cosines) >= alpha))


def _training_questions(task: Task, source: Source) -> list[Question]:
    """The questions of a source that are of splits which mining may learn from."""
    if is_prepared(source):
        split = split_called(wanted(source).split or task.references[0])
        _check_splits(task, [split], source)
        return read_questions(task, source, split)
    splits = sorted_into_splits(task, [str(source)])
    _check_splits(task, splits, source)
    return [question for split in task.references for question in splits.get(split, [])]


def _check_splits(task: Task, splits: Iterable[str], source: Source) -> None:
    """Raises ValueError where none is one to learn from."""
    if not {*splits} & {*task.references}:
        raise ValueError(
            f"{source}: questions of {task.name}'s split {', '.join(map(repr, splits))}: references are of "
            f"{' or '.join(task.references)} alone, never of what is evaluated"
        )


def _text(question: Question) -> str:
    """A reference as a document would have it: the question with its options, and the solution."""
    return "\n".join(filter(None, [question.asked, question.solution]))
