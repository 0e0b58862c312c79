"""What the world's base model reads before it meets the method: a mixture of three kinds of text.

(a) plain documents; (b) documents with thoughts between `<BOT>` and `<EOT>`, where a right or wrong thought
decides the step; (c) documents followed by `<|copy|>` and their annotated copy. All are flawed as people's
documents are, and none of their questions is ever used for mining or evaluation.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rationalyst_jax.files.ranges import AT_LEAST_0_FINITE, require
from rationalyst_jax.world.corpus import Line, annotated_lines
from rationalyst_jax.world.problems import draw

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Questions are mostly noise to a model of documents, less so when copied; thoughts are few and matter most.
QUESTION_WEIGHT, COPIED_QUESTION_WEIGHT, STEP_WEIGHT, THOUGHT_WEIGHT = 0.2, 0.5, 1.0, 2.0
OBEDIENCE = 0.98
INLINE_RATES = (0.35, 0.7, 1.0)
ANNOTATION_RATE = 0.8


@dataclass(frozen=True)
class Mixture:
    """Shares of the three kinds of text, by number of documents.

    Attributes:
        plain: Share of plain documents.
        inline: Share of documents with thoughts between markers.
        annotation: Share of documents that are followed by their annotated copy.

    Raises ValueError for a share below 0, and where all are 0.
    """

    plain: float = 0.3
    inline: float = 0.4
    annotation: float = 0.3

    def __post_init__(self):
        require("mixture", self, AT_LEAST_0_FINITE, "plain", "inline", "annotation")
        if not self.plain + self.inline + self.annotation:
            raise ValueError("mixture: one of plain, inline and annotation must be above 0")


def pretraining_texts(seed: int, count: int, mixture: Mixture) -> Iterator[list[tuple[str, float]]]:
    """`count` texts, each a list of (piece of text, loss weight of its tokens)."""
    rng = random.Random(f"pretraining-{seed}")
    kinds = ("plain", "inline", "annotation")
    shares = (mixture.plain, mixture.inline, mixture.annotation)
    for _ in range(count):
        kind = rng.choices(kinds, shares)[0]
        rate = {"plain": 0.0, "inline": rng.choice(INLINE_RATES), "annotation": ANNOTATION_RATE}[kind]
        while True:
            problem, misread = draw(rng, "pretrain")
            try:
                lines = annotated_lines(rng, problem, misread, rate, OBEDIENCE if kind == "inline" else 0.0)
            except ValueError:  # a thought led to a value that a later step cannot use
                continue
            break
        question = [(problem.question + "\n", QUESTION_WEIGHT)]
        if kind == "annotation":
            plain = [Line(line.text) for line in lines]
            copied = ("<|copy|>" + problem.question + "\n", COPIED_QUESTION_WEIGHT)
            yield [*question, *_pieces(plain), copied, *_pieces(lines)]
        else:
            yield [*question, *_pieces(lines)]


def _pieces(lines: list[Line]) -> Iterator[tuple[str, float]]:
    for i, line in enumerate(lines):
        if line.thought:
            yield f"<BOT>{line.thought}<EOT>", THOUGHT_WEIGHT
        yield line.text + ("\n" if i < len(lines) - 1 else ""), STEP_WEIGHT


def encode(
    tokenizer: "PreTrainedTokenizerBase", pieces: list[tuple[str, float]]
) -> tuple[list[int], list[float]]:
    """Token ids and loss weights of one text, from BOS (weight 0) to EOS."""
    bos = cast(int, tokenizer.bos_token_id)
    eos = cast(int, tokenizer.eos_token_id)
    tokens = [bos]
    weights = [0.0]
    for text, weight in pieces:
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens += ids
        weights += [weight] * len(ids)
    return [*tokens, eos], [*weights, STEP_WEIGHT]
