"""The training loop: token trees in, a trained Llama out; killed runs continue where they stopped."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from rationalyst_jax.files.interruption import Interrupted
from rationalyst_jax.lm.devices.chips import chip_of
from rationalyst_jax.lm.devices.sharding import created, mesh_of, shard_weights
from rationalyst_jax.lm.model.flops import training_flops
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.lora import Adapters
from rationalyst_jax.train.batches import Batches, loader, ordered_steps, shuffled_steps
from rationalyst_jax.train.checkpoints import VALIDATION_LOSS, Checkpoints
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.examples import split_by_group
from rationalyst_jax.train.metrics import Metrics, MetricsLog
from rationalyst_jax.train.preemption import Preemption
from rationalyst_jax.train.step import (
    Parts,
    TrainState,
    abstract_state,
    start_state,
    take_apart,
    train_step,
    validation_step,
)
from rationalyst_jax.train.store import TreeStore


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    model: trained weights in `master_dtype`; where adapters were trained, what they were added to is in
    `dtype`. metrics: the last step's row of metrics.jsonl. examples, validation_examples: how many were used;
    dropped: how many, of both, were too long. tree_tokens, sequence_tokens: tokens of the training examples
    after and before merging.
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
    store: TreeStore,
    config: TrainConfig,
    run_dir: str | Path,
    *,
    mesh: Mesh | None = None,
    starts_from: str = "",
    progress: Callable[[int, Metrics], None] = lambda steps, row: None,
    note: Callable[[str], None] = print,
    profile: int = 0,
    wandb: str | None = None,
) -> FitResult:
    """Trains `model`, whose weights become the run's, on a store of trees; `validation_fraction` of the
    groups are held out.

    `mesh`, by default that of the config over all devices, divides the work; the weights may already lie on
    it. `run_dir`, which all processes share, receives checkpoints/, tensorboard/ and metrics.jsonl, whose
    line N is step N: step, loss (nats per unit of loss weight, before the update), grad_norm, update_norm,
    learning_rate, tokens_per_second (of merged trees, per device), mfu (model FLOPs by the 6N + attention
    rule per second, of the chips' peak; where that is known) and, now and then, val_loss. When `run_dir`
    holds a checkpoint of the same run, training continues from the latest whole one and ends in the same
    bits; `starts_from` names the weights the run began with (a checkpoint's fingerprint, say), which no later
    checkpoint shows.
    `progress(steps, row)` is called with each new row, `note` with what a person should read. A trace of
    `profile` steps goes to profile/, metrics also to the project `wandb`.

    Raises ValueError for trees the model cannot take, a mesh that does not divide it, a checkpoint of another
    run (listing what differs), damaged ones, for memory that does not suffice (naming what helps), and for a
    loss or gradient that is not finite (naming step and documents; the state before it is kept); OSError
    where the disk is full; Interrupted after SIGTERM, when all is saved.
    """
    run_dir = Path(run_dir)
    if profile < 0:
        raise ValueError(f"profile must be at least 0 steps, got {profile}")
    mesh = mesh_of(config.mesh, jax.devices()) if mesh is None else mesh

    # ---- Data ----
    training, held_out = split_by_group(store.group, config.validation_fraction, config.seed)
    _check_data(model, store, training, config)
    examples = int(store.examples[training].sum())
    steps = config.steps
    if steps is None:
        steps = math.ceil(config.epochs * examples / config.batch_examples)
    members = shuffled_steps(store.examples[training], config.batch_examples, steps, config.seed)
    batches = Batches(store, [training[chosen] for chosen in members], config, mesh)
    members = ordered_steps(store.examples[held_out], config.batch_examples) if len(held_out) else []
    validation = Batches(store, [held_out[chosen] for chosen in members], config, mesh)

    # ---- Model and optimizer ----
    with knobs_named(config):
        parts = begin(model, config, mesh)
    step_of = partial(train_step, parts.graph, config, steps, mesh)
    flops = partial(training_flops, model.config, lora=config.lora is not None)
    chip = chip_of(mesh.devices.flat[0])

    # ---- Resume ----
    run = {
        **config.decides(),
        "model": asdict(model.config),
        "starts_from": starts_from,
        "examples": store.digest,
    }
    saved = Checkpoints(run_dir / "checkpoints", run, config.keep, note)
    with saved, knobs_named(config), closing(loader(batches)) as data, Preemption() as preemption:
        if saved.any():
            shapes = abstract_state(config, steps, parts.trained, mesh)
            for weight in jax.tree.leaves(parts.trained):
                weight.delete()  # the memory is for those of the checkpoint
            state, done, data_state = saved.restore(shapes)
            data.set_state(data_state)
        else:
            state, done = first_state(parts, config, steps, mesh), 0
        with MetricsLog(run_dir, done, wandb) as log, _trace(run_dir / "profile", profile) as tick:
            clock = time.perf_counter()

            def report(step: int, metrics: Mapping[str, Array], data_before: object) -> Metrics:
                """Waits for the numbers of a step, refuses what is not finite, writes the row."""
                nonlocal clock
                row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
                if not math.isfinite(row["loss"] + row["grad_norm"] + row["update_norm"]):
                    if step > 1:  # neither this step nor any after it has changed the state
                        log.sync()
                        saved.save(step - 1, state, data_before, {})
                    raise ValueError(_not_finite(row, batches.groups(step - 1)))
                if not math.isfinite(row.get(VALIDATION_LOSS, 0.0)):
                    raise ValueError(f"the validation loss after step {step} is {row[VALIDATION_LOSS]}")
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                tokens = batches.tokens(step - 1)
                row["tokens_per_second"] = tokens / seconds / mesh.size
                if chip:
                    work = flops(tokens, batches.attended(step - 1), batches.targets(step - 1))
                    row["mfu"] = work / seconds / mesh.size / chip.flops
                log.write(row)
                progress(steps, row)
                return row

            # ---- Loop ----
            waiting = None  # a dispatched step whose numbers have not been read
            for step in range(done + 1, steps + 1):
                data_before = data.get_state()
                state, metrics = step_of(state, parts.frozen, next(data), np.int32(step - 1))
                tick(metrics)
                if waiting:
                    report(*waiting)  # while this step runs
                last = step == steps
                stop = preemption.reached(step) and not last
                due = step % config.validate_every == 0 or last
                validate = due and len(validation) > 0 and not stop  # who has to stop may have seconds left
                if validate:
                    jax.block_until_ready(metrics)
                    start = time.perf_counter()
                    metrics |= {VALIDATION_LOSS: _validate(parts, config, mesh, state, validation)}
                    clock += time.perf_counter() - start
                save = stop or step % config.save_every == 0 or last
                waiting = step, metrics, data_before
                if validate or save:
                    row, waiting = report(*waiting), None
                    if save:
                        log.sync()
                        saved.save(step, state, data.get_state(), row)
                        clock = time.perf_counter()
                if stop:
                    saved.wait()
                    raise Interrupted(f"stopped by SIGTERM after step {step} of {steps}, which is saved")
            row = log.last()

    # ---- Result ----
    return FitResult(
        model=nnx.merge(parts.graph, state.weights, parts.frozen),
        steps=steps,
        metrics=row,
        examples=examples,
        validation_examples=int(store.examples[held_out].sum()),
        dropped=store.dropped,
        tree_tokens=int(store.nodes[training].sum()),
        sequence_tokens=int(store.sequence_tokens[training].sum()),
    )


def begin(model: Llama, config: TrainConfig, mesh: Mesh) -> Parts:
    """The model taken apart, with new adapters where these are to be trained.

    All of it on the mesh, in the dtypes of the config. Raises ValueError where the mesh does not divide it.
    """
    graph, weights = nnx.split(model)
    model = nnx.merge(graph, jax.device_put(weights, shard_weights(weights, mesh)))
    if config.lora is not None:
        layers, lora, seed = model.layers, config.lora, config.seed
        model.adapters = created(lambda: Adapters(layers, lora, rngs=nnx.Rngs(seed)), mesh)
    graph, trained, frozen = take_apart(model)
    trained = jax.tree.map(lambda w: w.astype(config.master_dtype), trained)
    return Parts(graph, trained, jax.tree.map(lambda w: w.astype(config.dtype), frozen))


def first_state(parts: Parts, config: TrainConfig, steps: int, mesh: Mesh) -> TrainState:
    """The state before step 1, made of what is trained of the parts, whose arrays are used up."""
    shapes = abstract_state(config, steps, parts.trained, mesh)
    sharding = jax.tree.map(lambda x: x.sharding, shapes)
    start = jax.jit(partial(start_state, config, steps), out_shardings=sharding, donate_argnums=0)
    return start(parts.trained)


def _check_data(model: Llama, store: TreeStore, training: np.ndarray, config: TrainConfig) -> None:
    """Raises ValueError for trees that the model cannot take, and where none is left to train on."""
    if not len(training):
        fraction, groups = config.validation_fraction, len(set(store.group))
        raise ValueError(
            f"no example to train on: validation_fraction {fraction} held out all {groups} groups"
        )
    if store.longest > (positions := model.config.max_position_embeddings):
        raise ValueError(f"an example is {store.longest} tokens long, the model has {positions} positions")
    if store.largest_token >= (vocabulary := model.config.vocab_size):
        raise ValueError(
            f"the examples hold token id {store.largest_token}, the model's vocabulary is {vocabulary}"
        )


def _validate(parts: Parts, config: TrainConfig, mesh: Mesh, state: TrainState, batches: Batches) -> float:
    """The mean loss over all held-out trees; waits for it."""
    sums = [
        validation_step(parts.graph, config, mesh, state.weights, parts.frozen, batches.place(batch))
        for batch in batches
    ]
    loss, weight = np.sum(jax.device_get(sums), axis=0)
    return float(loss / weight)


def _not_finite(row: Metrics, groups: Sequence[str]) -> str:
    named = ", ".join(groups[:5]) + (", ..." if len(groups) > 5 else "")
    numbers = f"loss {row['loss']}, gradient norm {row['grad_norm']}, update norm {row['update_norm']}"
    return f"step {row['step']:.0f}: {numbers}: not finite; in its batch are {len(groups)} documents: {named}"


@contextmanager
def knobs_named(config: TrainConfig) -> Iterator[None]:
    """Turns what XLA says of memory that does not suffice into what to do about it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        now = {
            "microbatch_rows": (config.microbatch_rows, "fewer"),
            "row_length": (config.row_length, "shorter"),
            "remat": (config.remat, "full or offload"),
            "moment_dtype": (config.moment_dtype, "bfloat16"),
            "master_dtype": (config.master_dtype, "bfloat16"),
            "lora": ("none" if config.lora is None else config.lora.rank, "adapters alone"),
        }
        knobs = ", ".join(f"{name} {value} ({better})" for name, (value, better) in now.items())
        reason = str(error).splitlines()[0]
        raise ValueError(f"out of memory: {reason}; what helps: {knobs}, more devices along fsdp") from error


@contextmanager
def _trace(folder: Path, steps: int) -> Iterator[Callable[[Any], None]]:
    """Yields what is to be called with what each dispatched step gives: the steps 3 to 2 + `steps` of this
    process are traced."""
    count, tracing = itertools.count(1), False

    def tick(given: Any) -> None:
        nonlocal tracing
        number = next(count)
        if number == 2 or (tracing and number == 2 + steps):
            jax.block_until_ready(given)
            tracing = not tracing
            jax.profiler.start_trace(str(folder)) if tracing else jax.profiler.stop_trace()

    try:
        yield tick if steps else lambda given: None
    finally:
        if tracing:  # the run was shorter
            jax.profiler.stop_trace()
