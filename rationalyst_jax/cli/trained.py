"""The model of a training run, from its checkpoints."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from flax import nnx

from rationalyst_jax.lm.checkpoint import abstract_llama
from rationalyst_jax.lm.config import LlamaConfig, RopeScaling
from rationalyst_jax.lm.llama import Llama


def load_trained(folder: Path) -> Llama:
    """The float32 master weights of the latest checkpoint that `train.checkpoints` wrote in `folder`.

    Raises ValueError for a folder without a whole checkpoint.
    """
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"{folder}: no finished checkpoint")
        made = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]["model"]
        graph, abstract = abstract_llama(_config(made))
        wanted = {"weights": abstract}
        form = ocp.checkpoint_utils.construct_restore_args(wanted)
        restore = ocp.args.PyTreeRestore(wanted, form, partial_restore=True)  # the optimizer stays on disk
        restored = manager.restore(step, args=ocp.args.Composite(state=restore))["state"]
    return nnx.merge(graph, restored["weights"])


def _config(fields: dict[str, Any]) -> LlamaConfig:
    """A config that went through JSON as its fields."""
    scaling, eos = fields["rope_scaling"], fields["eos_token_id"]
    scaling = None if scaling is None else RopeScaling(**scaling)
    eos = tuple(eos) if isinstance(eos, list) else eos
    return LlamaConfig(**{**fields, "rope_scaling": scaling, "eos_token_id": eos})
