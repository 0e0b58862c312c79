"""The training loop: examples in, a trained Llama out; killed runs continue where they stopped."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from rationalyst_jax.files.settings import digest
from rationalyst_jax.lm.llama import Llama
from rationalyst_jax.train.batches import Batches, ordered_steps, shuffled_steps
from rationalyst_jax.train.checkpoints import Checkpoints
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.examples import Example, TargetTree, forest, split_by_group
from rationalyst_jax.train.step import TrainState, adamw, train_step, validation_step

Metrics = dict[str, float]


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    model: trained weights in the dtype the model came in. metrics: the last step's row of metrics.jsonl.
    examples, validation_examples: how many were used; dropped: how many, of both, were too long.
    tree_tokens, sequence_tokens: tokens of the training examples after and before merging.
    """

    model: Llama
    steps: int
    metrics: Metrics
    examples: int
    validation_examples: int
    dropped: int
    tree_tokens: int
    sequence_tokens: int


def fit(
    model: Llama,
    examples: Iterable[Example],
    config: TrainConfig,
    run_dir: str | Path,
    *,
    starts_from: str = "",
    progress: Callable[[int, Metrics], None] | None = None,
) -> FitResult:
    """Trains a copy of `model` on `examples`, of whose groups `validation_fraction` are held out.

    `run_dir` receives checkpoints/ and metrics.jsonl, whose line N is step N: step, loss (nats per unit of
    loss weight, before the update), grad_norm, learning_rate, tokens_per_second (of merged trees) and, now
    and then, val_loss. When `run_dir` holds a checkpoint of the same run, training continues from the latest
    one and ends in the same bits; `starts_from` names the weights the run began with (a checkpoint's
    fingerprint, say), which no later checkpoint shows. `progress(steps, row)` is called with each new row.

    Raises ValueError for unusable examples, for a checkpoint of another run (listing what differs) or a
    damaged one, and for a loss or gradient that is not finite (naming the step, whose state is not saved).
    """
    run_dir = Path(run_dir)

    # ---- Data ----
    data = forest(examples, config.row_length, config.batch_examples)
    training, held_out = split_by_group(data.trees, config.validation_fraction, config.seed)
    if not training:
        groups, fraction = len({tree.group for tree in held_out}), config.validation_fraction
        raise ValueError(
            f"no example to train on: validation_fraction {fraction} held out all {groups} groups"
        )
    longest = max(int(tree.tree.position.max()) + 1 for tree in data.trees)
    if longest > (positions := model.config.max_position_embeddings):
        raise ValueError(f"an example is {longest} tokens long, the model has {positions} positions")
    largest = max(int(tree.tree.token.max()) for tree in data.trees)
    if largest >= (vocabulary := model.config.vocab_size):
        raise ValueError(f"the examples hold token id {largest}, the model's vocabulary is {vocabulary}")
    count = sum(tree.examples for tree in training)
    steps = config.steps or math.ceil(config.epochs * count / config.batch_examples)
    batches = Batches(training, shuffled_steps(training, config.batch_examples, steps, config.seed), config)
    validation = Batches(held_out, ordered_steps(held_out, config.batch_examples), config) if held_out else ()

    # ---- Model and optimizer ----
    graph, given = nnx.split(_with_remat(model, config.remat))
    weights = jax.tree.map(lambda w: jnp.array(w, jnp.float32, copy=True), given)  # the step donates them
    state = TrainState(weights, adamw(config, steps).init(weights), jnp.zeros((), jnp.int32))

    # ---- Resume ----
    run = {
        **asdict(config),
        "model": asdict(model.config),
        "starts_from": starts_from,
        "examples": forest_digest(data.trees),
    }
    checkpoints = Checkpoints(run_dir / "checkpoints", run, config.keep)
    state, done = checkpoints.restore(state)
    log = MetricsLog(run_dir / "metrics.jsonl", done)

    # ---- Loop ----
    waiting = None  # a dispatched step whose numbers have not been read
    clock = time.perf_counter()

    def report(step: int, metrics: Mapping[str, Array]) -> None:
        """Waits for the numbers of a step, refuses what is not finite, writes the row."""
        nonlocal clock
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        if not math.isfinite(row["loss"] + row["grad_norm"]):
            raise ValueError(f"step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}: not finite")
        now = time.perf_counter()
        row["tokens_per_second"] = batches.tokens(step - 1) / (now - clock)
        clock = now
        log.write(row)
        if progress:
            progress(steps, row)

    for step in range(done + 1, steps + 1):
        state, metrics = train_step(graph, config, steps, state, batches[step - 1])
        if waiting:
            report(*waiting)  # while this step runs
        waiting = step, metrics
        validate = validation and (step % config.validate_every == 0 or step == steps)
        save = step % config.save_every == 0 or step == steps
        if validate:
            sums = [validation_step(graph, state.weights, batch, config.dtype) for batch in validation]
            loss, weight = np.sum(sums, axis=0)
            waiting = step, {**metrics, "val_loss": loss / weight}
        if validate or save:
            report(*waiting)
            waiting = None
        if save:
            checkpoints.save(step, state)
            clock = time.perf_counter()
    checkpoints.close()

    # ---- Result ----
    trained = jax.tree.map(lambda new, old: new.astype(old.dtype), state.weights, given)
    return FitResult(
        model=nnx.merge(graph, trained),
        steps=steps,
        metrics=log.last(),
        examples=count,
        validation_examples=sum(tree.examples for tree in held_out),
        dropped=data.dropped,
        tree_tokens=sum(len(tree.tree) for tree in training),
        sequence_tokens=sum(tree.sequence_tokens for tree in training),
    )


class MetricsLog:
    """metrics.jsonl, line N for step N; opened after `done` steps, it forgets what came later.

    Raises ValueError where it holds fewer.
    """

    def __init__(self, path: Path, done: int):
        self.path = path
        with path.open("ab+") as file:
            file.seek(0)
            lines = [line for _ in range(done) if (line := file.readline()).endswith(b"\n")]
            if len(lines) < done:
                raise ValueError(f"{path}: holds {len(lines)} of {done} steps")
            file.truncate(sum(map(len, lines)))

    def write(self, row: Metrics) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def last(self) -> Metrics:
        return json.loads(self.path.read_text().splitlines()[-1])


def forest_digest(trees: Iterable[TargetTree]) -> str:
    """A fingerprint of what is trained on: tokens, structure and weights, in order."""
    return digest(
        array.tobytes()
        for tree in trees
        for array in (tree.tree.token, tree.tree.position, tree.node, tree.weight)
    )


def _with_remat(model: Llama, remat: bool) -> Llama:
    """The same parameters in a model that does or doesn't rematerialise."""
    twin = nnx.merge(*nnx.split(model))
    twin.remat = remat
    return twin
