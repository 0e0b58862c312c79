"""What one run trains on and validates on: a store of trees, divided."""

import math
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.train.batches import Batches, ordered_steps, shuffled_steps
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.examples import split_by_group
from rationalyst_jax.train.store import TreeStore


@dataclass(frozen=True)
class RunData:
    """The batches of a run.

    Attributes:
        steps: How many optimizer steps the run has.
        training: One batch for each step.
        validation: Batches of all held-out trees; none where none is held out.
        examples: How many examples are trained on, each counted once.
        validation_examples: How many are held out.
        dropped: How many examples, of both, were too long.
        tree_tokens: Tokens of the training examples, those of one document merged.
        sequence_tokens: Tokens of the training examples before merging.
    """

    steps: int
    training: Batches
    validation: Batches
    examples: int
    validation_examples: int
    dropped: int
    tree_tokens: int
    sequence_tokens: int


def run_data(store: TreeStore, model: LlamaConfig, config: TrainConfig, mesh: Mesh) -> RunData:
    """Divides a store's groups and plans the batches of all steps. Raises as `check_trees`."""
    check_trees(store, model, config)
    training, held_out = _split(store, config)
    examples = int(store.examples[training].sum())
    steps = config.steps
    if steps is None:
        steps = math.ceil(config.epochs * examples / config.batch_examples)
    chosen = shuffled_steps(store.examples[training], config.batch_examples, steps, config.seed)
    validated = ordered_steps(store.examples[held_out], config.batch_examples) if len(held_out) else []
    return RunData(
        steps=steps,
        training=Batches(store, [training[i] for i in chosen], config, mesh),
        validation=Batches(store, [held_out[i] for i in validated], config, mesh),
        examples=examples,
        validation_examples=int(store.examples[held_out].sum()),
        dropped=store.dropped,
        tree_tokens=int(store.nodes[training].sum()),
        sequence_tokens=int(store.sequence_tokens[training].sum()),
    )


def check_trees(store: TreeStore, model: LlamaConfig, config: TrainConfig) -> None:
    """Raises ValueError for trees that the model cannot take, naming the document, and where none is left to
    train on."""
    training, _ = _split(store, config)
    if not len(training):
        fraction = config.validation_fraction
        groups = len(set(store.group))
        raise ValueError(
            f"no example to train on: validation_fraction {fraction} held out all {groups} groups"
        )
    tree = int(store.longest.argmax())
    if (tokens := store.longest[tree]) > (positions := model.max_position_embeddings):
        raise ValueError(
            f"an example of document {store.group[tree]!r} is {tokens} tokens long, "
            f"the model has {positions} positions"
        )
    tree = int(store.largest_token.argmax())
    if (token := store.largest_token[tree]) >= (vocabulary := model.vocab_size):
        raise ValueError(
            f"the examples of document {store.group[tree]!r} hold token id {token}, "
            f"the model's vocabulary is {vocabulary}"
        )


def _split(store: TreeStore, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Which trees are trained on, and which are held out."""
    return split_by_group(store.group, config.validation_fraction, config.seed)
