"""Checkpoints of a training run, written by Orbax; each knows the run it belongs to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

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
        """The latest state and its step, or `state` itself and 0; raises ValueError for another run's."""
        step = self.manager.latest_step()
        if step is None:
            return state, 0
        run = self.manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        if differences := _differences(run, self.run):
            raise ValueError(f"{self.folder}: checkpoint of another run: {'; '.join(differences)}")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self.manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        return restored["state"], step

    def save(self, step: int, state: TrainState) -> None:
        """Returns when the state is on disk, whole."""
        self.manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(self.run)),
        )

    def close(self) -> None:
        self.manager.close()


def _differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    names = sorted({*stored, *asked})
    return [f"{n} {stored.get(n)} -> {asked.get(n)}" for n in names if stored.get(n) != asked.get(n)]
