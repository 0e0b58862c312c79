"""What a step would take of TPU chips that are not there: the program that a run executes, compiled, not run.

libtpu compiles on any machine for any TPU, and what the program needs and exchanges is read from the result
(`plan/program.py`). The compiler refuses what does not fit, but it counts only what is alive at one time; a
plan is said to fit where the layout, with its gaps, does too.
"""

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jax.stages import Lowered

from rationalyst_jax.lm.devices.chips import CHIPS, GIB, Chip
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.devices.sharding import by_row, mesh_of, placed, row_shards, shard_weights
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import forward_flops, training_flops
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.lora import Adapters
from rationalyst_jax.lm.trees import likelihood
from rationalyst_jax.lm.weights.hf import load_config
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.plan.program import Collective, TimeFloor, collectives, memory, time_floor
from rationalyst_jax.train.batches import batch_shapes
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.step import abstract_state, take_apart, train_step

Stage = Literal["train", "filter"]
# What can be compiled for, and the chips of its largest slice, beyond which the compiler aborts. v4 is left
# out: the compiler takes each of a chip's cores for a device there, and runs take both for one.
LARGEST = {"v2": (16, 16), "v3": (32, 32), "v5e": (16, 16), "v6e": (16, 16), "v5p": (16, 20, 28)}
_TPUS = [CHIPS[name] for name in LARGEST]
_STEPS = 1000  # of a run: a constant of the learning rate's schedule


@dataclass(frozen=True)
class PlanSettings:
    """The settings of the stages, by the names that they have on the command line; `mesh` is the filter's."""

    train: TrainConfig
    filter: FilterConfig
    mesh: MeshShape


@dataclass(frozen=True)
class Target:
    """Which program is compiled for what: a stage with a model on chips of one kind.

    usable: bytes of a chip's memory that programs can have; the compiler keeps some for itself.
    """

    stage: Stage
    model: LlamaConfig
    chip: Chip
    devices: Sequence[Any]
    slices: int
    usable: int


@dataclass(frozen=True)
class Plan:
    """What one microbatch of training with its update, or one batch of the filter, takes of each chip.

    mesh: replica, fsdp, tensor. rows: how many, and their length in tokens. parts: bytes of what is kept
    between steps, and of the summed gradients, by name. peak: bytes needed, of `usable`; a lower bound where
    there is no `program`. flops: of each chip. program: exchanges and time floor; None where the compiler
    refuses, or was not asked because `parts` alone are too much. seconds: of compiling; 0 where it was not
    asked.
    """

    mesh: tuple[int, int, int]
    rows: tuple[int, int]
    parts: dict[str, int]
    peak: int
    usable: int
    flops: float
    program: tuple[list[Collective], TimeFloor] | None
    seconds: float

    @property
    def fits(self) -> bool:
        return self.program is not None and self.peak <= self.usable

    @property
    def compiled(self) -> bool:
        """Whether the compiler was asked."""
        return self.seconds > 0

    @property
    def verdict(self) -> str:
        spare = (self.usable - self.peak) / GIB
        if self.fits:
            return f"fits, {spare:.2f} GiB to spare"
        if self.program is None and spare >= 0:
            return f"what is kept fits, and leaves {spare:.2f} GiB for activations, which are not counted"
        least = "" if self.program else "at least "
        return f"does not fit by {least}{(self.peak - self.usable) / GIB:.2f} GiB"


# Shapes by the names on the command line.
PUBLISHED = {
    "llama3-8b": LlamaConfig.llama3_8b,
    "llama3-70b": LlamaConfig.llama3_70b,
    "llama3.1-8b": LlamaConfig.llama3_1_8b,
    "llama3.1-70b": LlamaConfig.llama3_1_70b,
    "llama3.1-405b": LlamaConfig.llama3_1_405b,
    "llama3.2-1b": LlamaConfig.llama3_2_1b,
    "llama3.2-3b": LlamaConfig.llama3_2_3b,
}


def shape(model: str) -> LlamaConfig:
    """The shape of a published model, by its name, or of a checkpoint folder, by its config.json alone.

    Raises ValueError where there is neither, or the file is not right.
    """
    if model in PUBLISHED:
        return PUBLISHED[model]()
    if not Path(model).is_dir():
        raise ValueError(f"--model {model}: no such folder, and none of {', '.join(PUBLISHED)}")
    return load_config(model)


def plan(target: Target, settings: PlanSettings) -> Plan:
    """Compiles the stage's program, for TPUs; of a GPU's, only counts what is kept.

    Raises ValueError where the mesh divides devices, model or rows badly.
    """
    if target.stage == "train":
        mesh = mesh_of(settings.train.mesh, target.devices)
        program = training(target.model, settings.train, mesh)
    else:
        mesh = mesh_of(settings.mesh, target.devices)
        program = filtering(target.model, settings.filter, mesh)
    found = partial(
        Plan,
        mesh=tuple(mesh.shape.values()),
        rows=program.rows,
        parts=program.parts,
        usable=target.usable,
        flops=program.flops,
    )
    resident = sum(program.parts.values())
    if resident > target.usable or target.chip not in _TPUS:
        return found(peak=resident, program=None, seconds=0.0)
    start = time.perf_counter()
    try:
        compiled = program.lower().compile(compiler_options=_compiler_options(target.chip))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return found(peak=exceeded(str(error))[0], program=None, seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    needed = memory(compiled)
    exchanged = collectives(compiled)
    floor = time_floor(target.chip, program.flops, needed, exchanged)
    return found(peak=needed.peak, program=(exchanged, floor), seconds=seconds)


# ---- Chips ----


def target(stage: Stage, model: LlamaConfig, topology: str, slices: int = 1) -> Target:
    """The chips of a topology such as "v5e:4x4", `slices` times. Raises ValueError for one that cannot be."""
    name, _, layout = topology.partition(":")
    if name in CHIPS and name not in LARGEST:
        why = "v4 cannot be divided ahead of time" if name == "v4" else f"{name} is a GPU"
        raise ValueError(f"--topology {topology}: plan compiles for TPUs ({', '.join(LARGEST)}): {why}")
    largest = LARGEST.get(name, ())
    sizes = [int(size) for size in layout.split("x")] if re.fullmatch(r"\d+(x\d+)*", layout) else []
    if len(sizes) != len(largest) or not all(1 <= n <= most for n, most in zip(sizes, largest, strict=True)):
        shapes = ", ".join(f"{name}:{'x'.join(map(str, most))}" for name, most in LARGEST.items())
        raise ValueError(f"--topology {topology}: must be a TPU's name and layout, at most {shapes}")
    if slices < 1:
        raise ValueError(f"--slices must be at least 1, got {slices}")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("plan needs the TPU's compiler: pip install 'rationalyst_jax[aot]'")
    # Without these libtpu asks the network which TPU this machine is, and refuses where a run is using it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(sizes) == 1 else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices, **one_chip
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology {topology}: {str(error).splitlines()[0]}") from None
    return Target(stage, model, CHIPS[name], description.devices, slices, _usable(description.devices[0]))


def gpus(stage: Stage, model: LlamaConfig, chip: Chip, count: int) -> Target:
    """So many GPUs of one machine, for which this machine's CPU stands in: what is kept can be counted.

    All of their memory is said to be usable, because nobody here says how much a driver keeps.
    """
    if jax.config.jax_num_cpu_devices < count:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_num_cpu_devices", count)
    return Target(stage, model, chip, jax.devices("cpu")[:count], 1, chip.memory)


def tokens_within(found: Plan, chip: Chip, hours: float, utilisation: float) -> float:
    """An estimate: how many places of rows, in tokens, all chips compute within so many hours.

    utilisation: fraction of the chip's peak that its operations reach. Where the program is known, memory and
    exchanges may take longer than that, and then decide.
    """
    flops_a_second, _ = chip.peak
    seconds = found.flops / (flops_a_second * utilisation)
    if found.program is not None:
        _, floor = found.program
        seconds = max(seconds, floor.memory, floor.communication)
    B, T = found.rows
    return B * T * hours * 3600 / seconds


def libtpu_args(chip: Chip) -> str:
    """What libtpu is told when it compiles for a chip: LIBTPU_INIT_ARGS where that is set, else its flags."""
    return os.environ.get("LIBTPU_INIT_ARGS", " ".join(chip.libtpu_flags))


def _compiler_options(chip: Chip) -> dict[str, str | bool]:
    """The flags of a chip, one program at a time: what LIBTPU_INIT_ARGS says, libtpu has read by itself."""
    if "LIBTPU_INIT_ARGS" in os.environ:
        return {}
    flags = (flag.removeprefix("--").partition("=") for flag in chip.libtpu_flags)
    return {name: value for name, _, value in flags}


def _usable(device: Any) -> int:
    """Bytes that the compiler for this device gives to programs: it says so when asked for far too many."""
    too_many = jax.ShapeDtypeStruct((2**40,), jnp.int8, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(jnp.negative).lower(too_many).compile()
    except jax.errors.JaxRuntimeError as error:
        return exceeded(str(error))[1]
    raise ValueError(f"the compiler for {device.device_kind} does not say how much memory it has")


def exceeded(message: str) -> tuple[int, int]:
    """Bytes needed and bytes there are, from what the compiler says of memory that does not suffice.

    Raises ValueError where it says neither.
    """
    number = r"([\d.]+)([KMGT])"
    forms = rf"Used {number} of {number} hbm", rf"\({number}\) exceeds available HBM \({number}\)"
    found = next(filter(None, (re.search(form, message) for form in forms)), None)
    if found is None:
        raise ValueError(f"out of memory, and the compiler does not say by how much: {message}")
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed, there = (round(float(found[i]) * unit[found[i + 1]]) for i in (1, 3))
    return needed, there


# ---- Programs ----


class StageProgram(NamedTuple):
    """One execution of a program, before it is compiled.

    rows: how many, and their length in tokens. parts: as in `Plan`. flops: of one chip, all rows filled by
    one sequence each of which every token is asked for.
    """

    lower: Callable[[], Lowered]
    rows: tuple[int, int]
    parts: dict[str, int]
    flops: float


def training(model: LlamaConfig, config: TrainConfig, mesh: Mesh) -> StageProgram:
    """The step of `train/loop.py` with one microbatch. Raises ValueError where the mesh divides it badly."""

    def build() -> Llama:
        llama = Llama(model, rngs=nnx.Rngs(0))
        if config.lora is not None:
            llama.adapters = Adapters(llama.layers, config.lora, rngs=nnx.Rngs(0))
        return llama

    parts = take_apart(nnx.eval_shape(build))
    divided = shard_weights(parts.trained, mesh)
    trained = placed(parts.trained, divided, config.master_dtype)
    frozen = placed(parts.frozen, shard_weights(parts.frozen, mesh), config.dtype)
    state = abstract_state(config, _STEPS, trained, mesh)

    B = config.microbatch_rows * row_shards(mesh)
    T = config.row_length
    batch = batch_shapes(mesh, microbatches=1, rows=B, row_length=T, row_targets=T)  # every place a target
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))

    held = {f"parameters, {config.master_dtype}": bytes_of_chip(state.weights)}
    if config.lora is not None:
        held[f"frozen parameters, {config.dtype}"] = bytes_of_chip(frozen)
    held["gradients, float32"] = bytes_of_chip(placed(parts.trained, divided, jnp.float32))
    held["optimizer"] = bytes_of_chip(state.optimizer)
    operations = training_flops(model, B * T, B * T * (T + 1) // 2, lora=config.lora is not None)
    lower = partial(train_step.lower, parts.graph, config, _STEPS, mesh, state, frozen, batch, number)
    return StageProgram(lower, (B, T), held, operations / mesh.size)


def filtering(model: LlamaConfig, config: FilterConfig, mesh: Mesh) -> StageProgram:
    """The filter's program for one full batch, with bfloat16 weights. Raises ValueError as `training`."""
    B = config.rows_per_batch
    T = config.row_length
    G = row_shards(mesh)
    if B % G:
        raise ValueError(f"{B} rows a batch cannot be divided among {G} shards")
    graph, weights = nnx.split(nnx.eval_shape(lambda: Llama(model, rngs=nnx.Rngs(0))))
    weights = placed(weights, shard_weights(weights, mesh), jnp.bfloat16)

    row = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=by_row(mesh))
    slot = jax.ShapeDtypeStruct((G, B * T // G), jnp.int32, sharding=by_row(mesh))
    arrays: Any = (row, row, row, slot, slot)
    batch = likelihood.Batch(*arrays)
    operations = forward_flops(model, B * T, B * T * (T + 1) // 2)
    lower = partial(likelihood.score_rows.lower, graph, weights, batch, (), mesh)
    return StageProgram(
        lower, (B, T), {"parameters, bfloat16": bytes_of_chip(weights)}, operations / mesh.size
    )


def bytes_of_chip(tree: Any) -> int:
    """The bytes of one chip's part of all arrays."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
