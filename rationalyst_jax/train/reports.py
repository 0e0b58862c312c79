"""What a step reports: its numbers, read from the devices while the next step runs."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from jax import Array

from rationalyst_jax.lm.devices.chips import chip_of
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import training_flops
from rationalyst_jax.train.batches import Batches
from rationalyst_jax.train.checkpoints import VALIDATION_LOSS
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.metrics import Metrics, MetricsLog


class NotFinite(ValueError):
    """A loss, gradient or update that is no number, at this step; the state stays what it was before.

    data_before: where the data iterator stood before the step.
    """

    def __init__(self, message: str, step: int, data_before: Any):
        super().__init__(message)
        self.step = step
        self.data_before = data_before


class _Dispatched(NamedTuple):
    step: int
    metrics: Mapping[str, Array | float]
    data_before: Any


class Reports:
    """Makes a row of each dispatched step, one step late, writes it to the log and tells `progress` of it.

    The first row has `compile_seconds`. The clock starts with the object, and stands still in `paused()`.
    """

    def __init__(
        self,
        log: MetricsLog,
        batches: Batches,
        model: LlamaConfig,
        config: TrainConfig,
        compile_seconds: float,
        progress: Callable[[int, Metrics], None],
    ):
        self.log = log
        self.batches = batches
        self.model = model
        self.config = config
        self.progress = progress
        self._chip = chip_of(batches.mesh.devices.flat[0])
        self._first = {"compile_seconds": compile_seconds}
        self._waiting: _Dispatched | None = None
        self._clock = time.perf_counter()

    def dispatched(self, step: int, metrics: Mapping[str, Array | float], data_before: Any) -> None:
        """A step is under way: what it will have measured, and where the data iterator stood before it."""
        self._waiting = _Dispatched(step, metrics, data_before)

    def read(self) -> Metrics:
        """Waits for the step that is under way, if there is one, and writes its row; the latest row.

        Raises NotFinite, and ValueError for a validation loss that is no number.
        """
        if self._waiting:
            row = self._row(self._waiting)
            self._waiting = None
            self.log.write(row)
            self.progress(len(self.batches), row)
        return self.log.last()

    @contextmanager
    def paused(self, running: Any = None) -> Iterator[None]:
        """What is done within counts for no step; what is `running` is waited for before."""
        jax.block_until_ready(running)
        start = time.perf_counter()
        yield
        self._clock += time.perf_counter() - start

    def _row(self, dispatched: _Dispatched) -> Metrics:
        step, metrics, data_before = dispatched
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        if not math.isfinite(row["loss"] + row["grad_norm"] + row["update_norm"]):
            raise NotFinite(self._not_finite(row), step, data_before)
        if not math.isfinite(row.get(VALIDATION_LOSS, 0.0)):
            raise ValueError(f"the validation loss after step {step} is {row[VALIDATION_LOSS]}")
        row |= self._speed(step)
        row |= self._first
        self._first = {}
        return row

    def _speed(self, step: int) -> Metrics:
        """By the time since the step before was read."""
        now = time.perf_counter()
        seconds = now - self._clock
        self._clock = now
        devices = self.batches.mesh.size
        tokens = self.batches.tokens(step - 1)
        speed = {"tokens_per_second": tokens / seconds / devices}
        if self._chip:
            attended = self.batches.attended(step - 1)
            targets = self.batches.targets(step - 1)
            flops = training_flops(self.model, tokens, attended, targets, lora=self.config.lora is not None)
            speed["mfu"] = flops / seconds / devices / self._chip.flops
        return speed

    def _not_finite(self, row: Metrics) -> str:
        groups = self.batches.groups(int(row["step"]) - 1)
        named = ", ".join(groups[:5]) + (", ..." if len(groups) > 5 else "")
        numbers = f"loss {row['loss']}, gradient norm {row['grad_norm']}, update norm {row['update_norm']}"
        documents = f"in its batch are {len(groups)} documents: {named}"
        return f"step {row['step']:.0f}: {numbers}: not finite; {documents}"
