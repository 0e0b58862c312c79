"""The training loop: token trees in, a trained Llama out; killed runs continue where they stopped."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.stages import Compiled

from rationalyst_jax.files.interruption import Interrupted
from rationalyst_jax.lm.devices.sharding import created, mesh_of, shard_weights
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import training_flops
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.lora import Adapters
from rationalyst_jax.train.batches import Batches, TrainBatch, loader
from rationalyst_jax.train.checkpoints import VALIDATION_LOSS, Checkpoints
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.data import RunData, run_data
from rationalyst_jax.train.metrics import Metrics, MetricsLog
from rationalyst_jax.train.preemption import Preemption
from rationalyst_jax.train.profiling import traced
from rationalyst_jax.train.reports import NotFinite, Reports
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
    `dtype`. metrics: the last step's row of metrics.jsonl. trained_tokens, flops: of the trees of all steps,
    the operations by `training_flops`. The other counts are those of `RunData`.
    """

    model: Llama
    steps: int
    metrics: Metrics
    examples: int
    validation_examples: int
    dropped: int
    tree_tokens: int
    sequence_tokens: int
    trained_tokens: int
    flops: int


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
    rule per second, of the chips' peak; where that is known), now and then val_loss, and in the first row of
    each start compile_seconds, which the speeds leave out. When `run_dir` holds a checkpoint of the same run,
    training continues from the latest whole one and ends in the same bits; `starts_from` names the weights
    the run began with (a checkpoint's fingerprint, say), which no later checkpoint shows.
    `progress(steps, row)` is called with each new row, `note` with what a person should read. A trace of
    `profile` steps goes to profile/, metrics also to the project `wandb`.

    Raises ValueError for trees the model cannot take, a mesh that does not divide it, a checkpoint of another
    run (listing what differs), damaged ones, for memory that does not suffice (naming what helps), and for a
    loss or gradient that is not finite (naming step and documents; the state before it is kept); OSError
    where the disk is full; Interrupted after SIGTERM, when all is saved.
    """
    run_dir = Path(run_dir)
    mesh = mesh_of(config.mesh, jax.devices()) if mesh is None else mesh

    # ---- Build ----
    data = run_data(store, model.config, config, mesh)
    identity = {"model": asdict(model.config), "starts_from": starts_from, "examples": store.digest}
    with knobs_named(config):
        parts = begin(model, config, mesh)
    with (
        Preemption() as preemption,  # the outermost: SIGTERM must not end the writing of the last checkpoint
        Checkpoints(run_dir / "checkpoints", config.decides() | identity, config.keep, note) as checkpoints,
        knobs_named(config),
        closing(loader(data.training)) as batches,
    ):
        # ---- Restore ----
        state, done = _restored(checkpoints, batches, parts, config, data.steps, mesh)
        with MetricsLog(run_dir, done, wandb) as log, traced(run_dir / "profile", profile) as tick:
            if preemption.heard():
                raise Interrupted(f"stopped by SIGTERM at step {done} of {data.steps}, with nothing to save")
            if done == data.steps:
                return _result(parts, state, log.last(), data, model.config, config)
            step_of, compile_seconds = _compiled(parts, state, config, data)
            note(f"compiled in {compile_seconds:.1f} s")

            # ---- Loop ----
            reports = Reports(log, data.training, model.config, config, compile_seconds, progress)
            try:
                for step in range(done + 1, data.steps + 1):
                    data_before = batches.get_state()
                    state, metrics = step_of(state, parts.frozen, next(batches), np.int32(step - 1))
                    tick(metrics)
                    reports.read()  # of the step before, while this one runs
                    stop = preemption.heard() and step < data.steps
                    if not stop and len(data.validation) and _due(step, config.validate_every, data.steps):
                        with reports.paused(metrics):
                            metrics[VALIDATION_LOSS] = _validate(parts, state, config, data.validation)
                    reports.dispatched(step, metrics, data_before)
                    if stop or _due(step, config.save_every, data.steps):
                        _save(checkpoints, reports, step, state, batches.get_state(), stop=stop)
            except NotFinite as error:
                _save_before(error, checkpoints, log, state)
                raise
    if preemption.heard():
        raise Interrupted(f"stopped by SIGTERM after the last of {data.steps} steps, which is saved")
    return _result(parts, state, log.last(), data, model.config, config)


def begin(model: Llama, config: TrainConfig, mesh: Mesh) -> Parts:
    """The model taken apart, with new adapters where these are to be trained.

    All of it on the mesh, in the dtypes of the config. Raises ValueError where the mesh does not divide it.
    """
    graph, weights = nnx.split(model)
    model = nnx.merge(graph, jax.device_put(weights, shard_weights(weights, mesh)))
    if config.lora is not None:
        layers = model.layers
        lora = config.lora
        model.adapters = created(lambda: Adapters(layers, lora, rngs=nnx.Rngs(config.seed)), mesh)
    graph, trained, frozen = take_apart(model)
    trained = jax.tree.map(lambda w: w.astype(config.master_dtype), trained)
    return Parts(graph, trained, jax.tree.map(lambda w: w.astype(config.dtype), frozen))


def first_state(parts: Parts, config: TrainConfig, steps: int, mesh: Mesh) -> TrainState:
    """The state before step 1, made of what is trained of the parts, whose arrays are used up."""
    shapes = abstract_state(config, steps, parts.trained, mesh)
    sharding = jax.tree.map(lambda x: x.sharding, shapes)
    start = jax.jit(partial(start_state, config, steps), out_shardings=sharding, donate_argnums=0)
    return start(parts.trained)


def _restored(
    checkpoints: Checkpoints,
    batches: grain.DatasetIterator[TrainBatch],
    parts: Parts,
    config: TrainConfig,
    steps: int,
    mesh: Mesh,
) -> tuple[TrainState, int]:
    """The state to go on from and the steps it has behind it, 0 where there is no checkpoint.

    Moves `batches` to where that run stood. What is trained of the parts is used up.
    """
    if not checkpoints.any():
        return first_state(parts, config, steps, mesh), 0
    shapes = abstract_state(config, steps, parts.trained, mesh)
    for weight in jax.tree.leaves(parts.trained):
        weight.delete()  # the memory is for those of the checkpoint
    state, done, data_state = checkpoints.restore(shapes)
    batches.set_state(data_state)
    return state, done


def _compiled(parts: Parts, state: TrainState, config: TrainConfig, data: RunData) -> tuple[Compiled, float]:
    """The program of a step: (state, frozen, batch, number) -> (state, metrics). And the seconds it took."""
    start = time.perf_counter()
    batch = data.training.shapes()
    settings = (parts.graph, config, data.steps, data.training.mesh)
    lowered = train_step.lower(*settings, state, parts.frozen, batch, np.int32(0))
    return lowered.compile(), time.perf_counter() - start


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def _save(
    checkpoints: Checkpoints, reports: Reports, step: int, state: TrainState, data_state: Any, *, stop: bool
) -> None:
    """Begins a checkpoint of the state after a step; the rows up to that step are on the disk before.

    To `stop`, waits until the checkpoint is whole and raises Interrupted.
    """
    row = reports.read()
    with reports.paused():
        reports.log.sync()
        checkpoints.save(step, state, data_state, row)
    if stop:
        checkpoints.wait()
        raise Interrupted(f"stopped by SIGTERM after step {step} of {len(reports.batches)}, which is saved")


def _save_before(error: NotFinite, checkpoints: Checkpoints, log: MetricsLog, state: TrainState) -> None:
    """A checkpoint of the last good state: neither the error's step nor any after it has changed `state`."""
    if error.step > 1:
        log.sync()
        checkpoints.save(error.step - 1, state, error.data_before, {})


def _validate(parts: Parts, state: TrainState, config: TrainConfig, batches: Batches) -> float:
    """The mean loss over all held-out trees; waits for it."""
    sums = [
        validation_step(parts.graph, config, batches.mesh, state.weights, parts.frozen, batches.place(batch))
        for batch in batches
    ]
    loss, weight = np.sum(jax.device_get(sums), axis=0)
    return float(loss / weight)


def _result(
    parts: Parts,
    state: TrainState,
    metrics: Metrics,
    data: RunData,
    model: LlamaConfig,
    config: TrainConfig,
) -> FitResult:
    batches = data.training
    tokens, attended, targets = (
        sum(map(of_step, range(data.steps)))
        for of_step in (batches.tokens, batches.attended, batches.targets)
    )
    return FitResult(
        model=nnx.merge(parts.graph, state.weights, parts.frozen),
        steps=data.steps,
        metrics=metrics,
        examples=data.examples,
        validation_examples=data.validation_examples,
        dropped=data.dropped,
        tree_tokens=data.tree_tokens,
        sequence_tokens=data.sequence_tokens,
        trained_tokens=tokens,
        flops=training_flops(model, tokens, attended, targets, lora=config.lora is not None),
    )


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
