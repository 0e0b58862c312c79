"""Checkpoints of a training run, written by Orbax while the next steps run; each knows the run it belongs to.

A checkpoint holds the state, where the data iterator stands, what makes the run this run, and the versions of
the packages. Arrays are restored onto whatever mesh the run has now.
"""

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from rationalyst_jax.files.settings import differences, package_versions
from rationalyst_jax.lm.devices.distributed import barrier, is_main
from rationalyst_jax.lm.model.config import LlamaConfig, RopeScaling
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.event_loops import lenient_loops
from rationalyst_jax.lm.weights.orbax import abstract_llama
from rationalyst_jax.train.step import TrainState

VALIDATION_LOSS = "val_loss"


class DamagedCheckpoint(ValueError):
    """A checkpoint that is there but cannot be read whole."""


class Restored(NamedTuple):
    """A state, the steps it has behind it, and where the data iterator stood."""

    state: TrainState
    step: int
    data: Any


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: the loop asks jax, and Orbax's numbers would come between its own (`Preemption.heard`)."""
        return False


class Checkpoints:
    """The last `keep` states of one run, and the one with the lowest validation loss.

    `run` is what makes it this run, JSON data stored with each state. `note` is told what a person should
    know, one line at a time. A context: leaving it waits for what is still being written.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], keep: int, note: Callable[[str], None]):
        self.folder = folder
        self.note = note
        self.run = json.loads(json.dumps(run))

        def quality(metrics: Any) -> float:
            return -metrics[VALIDATION_LOSS]

        best = BestN(get_metric_fn=quality, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=quality,
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
            cleanup_tmp_directories=True,  # what a killed run left half written
        )
        self.manager = _Manager(folder.absolute(), options=options)
        self._loops = lenient_loops()

    def __enter__(self) -> Self:
        self._loops.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            with self._named():
                self.manager.close()
        except OSError:
            if kind is None:  # an error on its way out says more
                raise
        finally:
            self._loops.__exit__(None, None, None)

    def any(self) -> bool:
        """Whether there is a checkpoint."""
        return bool(self.manager.all_steps())

    def restore(self, shapes: TrainState) -> Restored:
        """The latest whole state, in these shapes and divided among devices as they say.

        A damaged checkpoint is noted, put aside in `damaged/` beside the others' folder, and the one before
        it taken. Raises ValueError for a checkpoint of another run (listing what differs), and where every
        checkpoint is damaged.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                found = self._restore(step, shapes)
            except DamagedCheckpoint as error:
                found = None
                damaged[step] = str(error)
            if _everywhere(found is not None):
                self._set_aside(damaged)
                return cast(Restored, found)
            damaged.setdefault(step, f"{self.folder / str(step)}: damaged for another process")
        raise ValueError(next(iter(damaged.values())))

    def _restore(self, step: int, shapes: TrainState) -> Restored:
        run = _restored(self.manager, self.folder, step, run=ocp.args.JsonRestore())
        if found := list(differences(run, self.run)):
            raise ValueError(f"{self.folder}: checkpoint of another run: {'; '.join(found)}")
        versions = _restored(self.manager, self.folder, step, versions=ocp.args.JsonRestore())
        data = _restored(self.manager, self.folder, step, data=ocp.args.JsonRestore())
        whole = _restored(self.manager, self.folder, step, state=ocp.args.StandardRestore(shapes))
        if changed := list(differences(versions, package_versions())):
            self.note(f"{self.folder}: saved with other versions: {'; '.join(changed)}")
        return Restored(whole, step, data)

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        """Makes room for the steps that will be saved again."""
        for step, problem in damaged.items():
            aside = self.folder.parent / "damaged"
            names = (f"{step}.{again}" if again else str(step) for again in itertools.count())
            free = next(path for name in names if not (path := aside / name).exists())
            self.note(f"{problem}; put aside as {free}, going on from the checkpoint before")
            if is_main():
                aside.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(free)
        if damaged:
            barrier("damaged checkpoints put aside")
            self.manager.reload()

    def save(self, step: int, state: TrainState, data: Any, metrics: Mapping[str, float]) -> None:
        """Copies the state to the host and returns; it is written meanwhile. Once a step: again is nothing.

        `data` is where the data iterator stands (JSON). Raises OSError where the disk is full, for this
        checkpoint or the one before, and leaves the finished ones as they are.
        """
        if step in self.manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            run=ocp.args.JsonSave(self.run),
            versions=ocp.args.JsonSave(package_versions()),
        )
        quality = {VALIDATION_LOSS: metrics[VALIDATION_LOSS]} if VALIDATION_LOSS in metrics else None
        with self._named():
            self.manager.save(step, args=args, metrics=quality)

    def wait(self) -> None:
        """Until what was saved is on the disk. Raises as `save`."""
        with self._named():
            self.manager.wait_until_finished()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turns what Orbax and TensorStore raise on a full disk into one OSError."""
        try:
            yield
        except Exception as error:
            said = " ".join(map(str, _causes(error)))
            if not any(os.strerror(number) in said for number in (errno.ENOSPC, errno.EDQUOT)):
                raise
            self.manager.reload()
            whole = self.manager.all_steps()
            kept = f"the checkpoint of step {max(whole)} is whole" if whole else "there is none yet"
            raise OSError(
                errno.ENOSPC, f"no space left for a checkpoint; {kept}", str(self.folder)
            ) from error


def _everywhere(holds: bool) -> bool:
    """Whether it holds on all processes."""
    barrier("asked of all processes")
    return bool(np.all(multihost_utils.process_allgather(np.array(holds))))


def load_trained(folder: Path) -> Llama:
    """The master weights of the latest checkpoint in `folder`, in float32.

    Raises ValueError for a folder without a whole checkpoint, for a damaged one, and for one of adapters
    alone.
    """
    options = ocp.CheckpointManagerOptions(read_only=True)
    with lenient_loops(), ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"{folder}: no finished checkpoint")
        run = _restored(manager, folder, step, run=ocp.args.JsonRestore())
        if run["lora"] is not None:
            raise ValueError(f"{folder}: holds adapters alone; `rationalyst merge` adds them to their model")
        try:
            graph, abstract = abstract_llama(_config(run["model"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedCheckpoint(
                f"{folder / str(step)}: damaged checkpoint: model config: {error}"
            ) from error
        wanted = {"weights": abstract}
        form = ocp.checkpoint_utils.construct_restore_args(wanted)
        restore = ocp.args.PyTreeRestore(wanted, form, partial_restore=True)  # the optimizer stays on disk
        restored = _restored(manager, folder, step, state=restore)
    return nnx.merge(graph, restored["weights"])


def _restored(manager: ocp.CheckpointManager, folder: Path, step: int, **item: Any) -> Any:
    """One item of a checkpoint, given by its name and how to restore it. Raises DamagedCheckpoint."""
    (name,) = item
    try:
        return manager.restore(step, args=ocp.args.Composite(**item))[name]
    except Exception as error:  # Orbax and TensorStore raise whatever they like for a damaged file
        if "RESOURCE_EXHAUSTED" in str(error):
            raise  # no memory, too many open files: that says nothing of the file
        *_, cause = _causes(error)  # the first to fail says which file
        reason = str(cause).splitlines() or [type(cause).__name__]
        raise DamagedCheckpoint(f"{folder / str(step)}: damaged checkpoint: {reason[0]:.200}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it was raised from, the first to fail last."""
    cause: BaseException | None = error
    while cause:
        yield cause
        cause = cause.__cause__


def _config(fields: dict[str, Any]) -> LlamaConfig:
    """A config that went through JSON as its fields."""
    scaling = fields["rope_scaling"]
    scaling = None if scaling is None else RopeScaling(**scaling)
    eos = fields["eos_token_id"]
    eos = tuple(eos) if isinstance(eos, list) else eos
    return LlamaConfig(**{**fields, "rope_scaling": scaling, "eos_token_id": eos})
