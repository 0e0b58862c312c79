"""Checkpoints of a training run, written by Orbax; each knows the run it belongs to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from rationalyst_jax.files.settings import differences
from rationalyst_jax.lm.checkpoint import abstract_llama
from rationalyst_jax.lm.config import LlamaConfig, RopeScaling
from rationalyst_jax.lm.llama import Llama
from rationalyst_jax.train.step import TrainState


class Checkpoints:
    """The last `keep` states of one run. `run` is what makes it this run, JSON data stored beside them."""

    def __init__(self, folder: Path, run: Mapping[str, Any], keep: int):
        self.folder = folder
        self.run = json.loads(json.dumps(run))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,  # what a killed run left half written
            enable_async_checkpointing=False,  # the next step is given the state's buffers
        )
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def restore(self, state: TrainState) -> tuple[TrainState, int]:
        """The latest state and its step, or `state` itself and 0.

        Raises ValueError for a damaged checkpoint, and for another run's (listing what differs).
        """
        step = self.manager.latest_step()
        if step is None:
            return state, 0
        run = _restored(self.manager, self.folder, step, run=ocp.args.JsonRestore())
        if found := list(differences(run, self.run)):
            raise ValueError(f"{self.folder}: checkpoint of another run: {'; '.join(found)}")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        return _restored(self.manager, self.folder, step, state=ocp.args.StandardRestore(abstract)), step

    def save(self, step: int, state: TrainState) -> None:
        """Returns when the state is on disk, whole."""
        self.manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(self.run)),
        )

    def close(self) -> None:
        self.manager.close()


def load_trained(folder: Path) -> Llama:
    """The float32 master weights of the latest checkpoint in `folder`.

    Raises ValueError for a folder without a whole checkpoint, and for a damaged one.
    """
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"{folder}: no finished checkpoint")
        run = _restored(manager, folder, step, run=ocp.args.JsonRestore())
        try:
            graph, abstract = abstract_llama(_config(run["model"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / str(step)}: damaged checkpoint: model config: {error}") from error
        wanted = {"weights": abstract}
        form = ocp.checkpoint_utils.construct_restore_args(wanted)
        restore = ocp.args.PyTreeRestore(wanted, form, partial_restore=True)  # the optimizer stays on disk
        restored = _restored(manager, folder, step, state=restore)
    return nnx.merge(graph, restored["weights"])


def _restored(manager: ocp.CheckpointManager, folder: Path, step: int, **item: Any) -> Any:
    """One item of a checkpoint, given by its name and how to restore it; ValueError where it is damaged."""
    (name,) = item
    try:
        return manager.restore(step, args=ocp.args.Composite(**item))[name]
    except Exception as error:  # Orbax and TensorStore raise whatever they like for a damaged file
        cause = error
        while cause.__cause__:  # the first to fail says which file
            cause = cause.__cause__
        reason = str(cause).splitlines() or [type(cause).__name__]
        raise ValueError(f"{folder / str(step)}: damaged checkpoint: {reason[0]:.200}") from error


def _config(fields: dict[str, Any]) -> LlamaConfig:
    """A config that went through JSON as its fields."""
    scaling, eos = fields["rope_scaling"], fields["eos_token_id"]
    scaling = None if scaling is None else RopeScaling(**scaling)
    eos = tuple(eos) if isinstance(eos, list) else eos
    return LlamaConfig(**{**fields, "rope_scaling": scaling, "eos_token_id": eos})
