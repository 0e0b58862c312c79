"""What mining is told."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from rationalyst_jax.files.ranges import (
    ABOVE_0_FINITE,
    ABOVE_0_TO_1,
    AT_LEAST_0,
    AT_LEAST_1,
    AT_LEAST_2,
    AT_LEAST_8,
    BELOW_1,
    COSINE,
    FINITE,
    SEED,
    TEMPERATURE,
    Range,
    require,
)
from rationalyst_jax.lm.trees.reduction import Reduction, reduce_logprobs
from rationalyst_jax.mine.places import PlaceKind

# What only the method "insert" looks at.
_INSERTING = ("places", "most_places", "candidates", "max_rationale_tokens", "prompt", "suppress")

_HASHES: Range = "from 1 to 1024", lambda value: 1 <= value <= 1024


@dataclass(frozen=True)
class AnnotateConfig:
    """How documents are annotated.

    Attributes:
        method: How rationales come into a document. With "copy", the paper's way, the model copies the
            document and writes rationales into the copy. With "insert" it is shown the text before a place
            and writes what may stand there: nothing is copied.
        temperature: Temperature at which the model writes; 0 is greedy. The default is 1, because greedy
            copies of a small model hold only vacuous rationales.
        top_p: Each token is drawn from the likeliest ones that together have at least this probability.
        seed: Seed of the model's noise: equal seeds give equal annotations.
        block: Number of documents that are annotated at the same time.
        max_document_tokens: Largest number of tokens in a document. A longer document is left out
            ("too_long"), and so is one whose copy would not fit in the model's positions.
        length_factor: An annotated copy may have up to length_factor times the document's tokens, plus
            length_margin.
        length_margin: Tokens that an annotated copy may have beyond length_factor times the document's.
        places: Where rationales are inserted: before each "line", each "sentence" (and line), or each
            "clause" (and sentence).
        most_places: Largest number of places in a document. Of more, those are taken whose next words
            surprise the model most. By default all are taken.
        candidates: Number of rationales that are sampled for each place.
        max_rationale_tokens: Largest number of tokens in an inserted rationale. One that is not finished by
            then is not used.
        prompt: The prompt that asks for a rationale: "insert" shows an instruct model how, "rationale" is
            what a RATIONALYST was trained on.
        suppress: Marker strings, one token each, that are never inserted. They have no probability where the
            surprise of words is measured.

    Raises ValueError naming the key and the value that is out of range, or that changes nothing.
    """

    method: Literal["copy", "insert"] = "copy"
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    block: int = 64
    max_document_tokens: int = 2048
    length_factor: float = 1.6
    length_margin: int = 64
    places: PlaceKind = "sentence"
    most_places: int | None = None
    candidates: int = 1
    max_rationale_tokens: int = 128
    prompt: Literal["insert", "rationale"] = "insert"
    suppress: tuple[str, ...] = ()

    def __post_init__(self):
        counts = ("block", "max_document_tokens", "candidates", "max_rationale_tokens")
        require("annotate", self, AT_LEAST_1, *counts)
        require("annotate", self, AT_LEAST_0, "length_margin")
        require("annotate", self, SEED, "seed")
        require("annotate", self, ABOVE_0_FINITE, "length_factor")
        require("annotate", self, TEMPERATURE, "temperature")
        require("annotate", self, ABOVE_0_TO_1, "top_p")
        if self.most_places is not None:
            require("annotate", self, AT_LEAST_1, "most_places")
        for option in fields(self):
            if self.method == "copy" and option.name in _INSERTING:
                if (value := getattr(self, option.name)) != option.default:
                    raise ValueError(f"annotate: {option.name} is {value!r}, but method copy inserts nothing")

    def by(self, method: Literal["copy", "insert"]) -> "AnnotateConfig":
        """The same settings for a method, as far as it looks at them."""
        unused = {f.name: f.default for f in fields(self) if method == "copy" and f.name in _INSERTING}
        return replace(self, method=method, **unused)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Names of the prompts that the model is asked with."""
        if self.method == "copy":
            return ("annotate",)
        return (self.prompt,) if self.most_places is None else (self.prompt, "follow")


@dataclass(frozen=True)
class DedupConfig:
    """Which documents are duplicates.

    Attributes:
        similarity: Similarity from which documents are near-duplicates: of the runs of words (shingles) in
            either document, the fraction that both have. It is estimated. At 0.75, documents of similarity
            0.75 are found half of the time, of 0.8 in 92 of 100 cases, and of 0.85 nearly always.
        shingle: Number of words in a shingle. Each word that is changed changes so many shingles: with more
            than 3, short documents are found less often.
        hashes: Largest number of hash functions. The more, the sharper the estimate. Memory grows with it.
        seed: Seed that the hash functions are drawn with.

    Raises ValueError naming the key and the value that is out of range.
    """

    similarity: float = 0.75
    shingle: int = 3
    hashes: int = 128
    seed: int = 0

    def __post_init__(self):
        require("dedup", self, ABOVE_0_TO_1, "similarity")
        require("dedup", self, AT_LEAST_1, "shingle")
        require("dedup", self, _HASHES, "hashes")
        require("dedup", self, SEED, "seed")


@dataclass(frozen=True)
class DecontaminateConfig:
    """Which documents hold a question of an evaluation set.

    Attributes:
        ngram: Number of words that a document and a question must have in common, one after the other. A
            shorter question must be in the document as a whole.
        min_words: Smallest number of those words that are no numbers. Questions with fewer words cannot be
            looked for, and are counted.
        drop_masked: Whether documents are dropped, too, that have a question's words with other numbers. They
            are counted in any case.

    Raises ValueError naming the key and the value that is out of range.
    """

    ngram: int = 13
    min_words: int = 8
    drop_masked: bool = True

    def __post_init__(self):
        require("decontaminate", self, AT_LEAST_1, "ngram", "min_words")
        if self.min_words > self.ngram:
            raise ValueError(
                f"decontaminate: min_words must be at most ngram, {self.ngram}, got {self.min_words}"
            )


@dataclass(frozen=True)
class FilterConfig:
    """How rationales are judged.

    Attributes:
        reduction: How the log-probabilities of the following text's tokens become one number. The paper's is
            decayed_sum: token t, counted from 0, has the weight decay^t.
        decay: Weight of a token relative to the one before it, in decayed_sum and decayed_mean.
        tau: Smallest gain (nats) with which a rationale is kept.
        tau_by_source: Smallest gain (nats) for rationales of the sources named here, instead of tau. The
            paper has 1.2 for GSM8K, 0.5 for ECQA and 0 for The Pile.
        keep: Which rationales are kept. "gain" keeps those that reach their threshold. Two ablations: "all"
            keeps every one, "random" draws as many of each source by lot as "gain" would keep.
        per_place: How many rationales "gain" may keep at one place of a document: "all" that reach their
            threshold, or the "best" of them, with the largest gain.
        share: Fraction of the rationales so kept that stays, drawn by lot; the others are dropped. Equal
            seeds give nested shares: what stays at 0.1 stays at 0.3.
        seed: Seed of the lots that keep "random" and share draw.
        suppress: Marker strings, one token each, that have no probability while scoring. A model that has
            seen rationales inside of text expects the next marker at the next line break. It would score
            what stands there instead about 0.3 nats lower, for no fault of the rationale.
        row_length: Tokens of a packed row. A text with one of its rationales must fit in one row. The tree of
            a document may need several rows.
        rows_per_batch: Number of rows that are computed at the same time.
        block: Number of documents that are packed together. A killed run repeats at most two blocks.

    Raises ValueError naming the key and the value that is out of range.
    """

    reduction: Reduction = "decayed_sum"
    decay: float = 0.9
    tau: float = 0.0
    tau_by_source: Mapping[str, float] = field(default_factory=dict)
    keep: Literal["gain", "all", "random"] = "gain"
    per_place: Literal["all", "best"] = "all"
    share: float = 1.0
    seed: int = 0
    suppress: tuple[str, ...] = ()
    row_length: int = 1024
    rows_per_batch: int = 8
    block: int = 256

    def __post_init__(self):
        require("filter", self, AT_LEAST_1, "row_length", "rows_per_batch", "block")
        require("filter", self, SEED, "seed")
        require("filter", self, ABOVE_0_TO_1, "decay", "share")
        require("filter", self, FINITE, "tau")
        for source, tau in self.tau_by_source.items():
            if not math.isfinite(tau):
                raise ValueError(f"filter: tau_by_source.{source} must be finite, got {tau!r}")
        reduce_logprobs(np.zeros(1), self.reduction)  # raises for a name it does not know


@dataclass(frozen=True)
class PrefilterConfig:
    """Which documents are like reasoning.

    Attributes:
        alpha: Smallest cosine with the references with which a document is kept. By default it is calibrated:
            the largest one with the wanted recall. A number belongs to its encoder, normalisation and
            references: the paper's is 0.3.
        recall: Share of the held-out references that a calibrated alpha keeps, the mean over the sets.
        centroids: What a document is compared with: the "mean" of the sets' centroids, each weighing the
            same, as in the paper, or the "nearest" of them.
        normalisation: What is done to a text before it is encoded. "paper": lower case, no punctuation, no
            stop words (of our own list). "none": nothing.
        max_references: Number of questions that are used of each set, drawn by lot.
        held_out: Share of these that makes no centroid, and measures recall.
        seed: Seed of these lots.
        window: Largest number of tokens of a window. By default it is the encoder's own. A longer document is
            cut where sentences end, and counts as its best window does.
        dtype: What the encoder computes in. bfloat16 is faster on accelerators, and cosines are rounded.
        block: Number of documents that are packed together. A killed run repeats at most two blocks.
        batch_tokens: Number of tokens that are computed at the same time; null: 1024 on a CPU, whose caches
            hold what they take, 16384 elsewhere.
        workers: Number of processes that tokenize; 0 lets the main one do it.

    Raises ValueError naming the key and the value that is out of range.
    """

    alpha: float | None = None
    recall: float = 0.95
    centroids: Literal["mean", "nearest"] = "mean"
    normalisation: Literal["paper", "none"] = "paper"
    max_references: int = 2000
    held_out: float = 0.2
    seed: int = 0
    window: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    block: int = 512
    batch_tokens: int | None = None
    workers: int = 1

    def __post_init__(self):
        require("prefilter", self, AT_LEAST_1, "block")
        require("prefilter", self, AT_LEAST_0, "workers")
        require("prefilter", self, AT_LEAST_2, "max_references")
        require("prefilter", self, SEED, "seed")
        require("prefilter", self, ABOVE_0_TO_1, "recall")
        require("prefilter", self, BELOW_1, "held_out")
        if self.batch_tokens is not None:
            require("prefilter", self, AT_LEAST_1, "batch_tokens")
        if self.window is not None:
            require("prefilter", self, AT_LEAST_8, "window")
        if self.alpha is not None:
            require("prefilter", self, COSINE, "alpha")

    def decides(self) -> dict[str, Any]:
        """The settings that decide which documents are kept, as JSON values: all but `workers`."""
        return {name: value for name, value in asdict(self).items() if name != "workers"}
