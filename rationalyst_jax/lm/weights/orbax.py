"""A model alone as an Orbax checkpoint: a folder with config.json (Hugging Face's style) and weights/.

Optimizer state and resuming belong to training; this is the form for keeping and moving weights between JAX
programs, bit by bit in the dtype they have.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from rationalyst_jax.files.whole import write_json
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.event_loops import lenient_loops
from rationalyst_jax.lm.weights.hf import load_config
from rationalyst_jax.lm.weights.tensor_files import misfits

WEIGHTS = "weights"


def save_orbax(model: Llama, path: str | Path) -> None:
    """Writes `model` into the folder `path`; the weights appear whole or not at all.

    Raises ValueError where `path` already holds weights, and of a model in panels (`lay_out`).
    """
    path = Path(path)
    if model.panels is not None:
        raise ValueError(f"{path}: a model that is laid out for a CPU is not saved")
    if (path / WEIGHTS).exists():
        raise ValueError(f"{path}: already holds a checkpoint")
    write_json(path / "config.json", model.config.to_hf())
    with lenient_loops(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((path / WEIGHTS).absolute(), nnx.to_pure_dict(nnx.state(model)))


def load_orbax(path: str | Path) -> Llama:
    """The model that `save_orbax` wrote, every parameter in the dtype it was saved with.

    Raises FileNotFoundError for a missing file and ValueError for a damaged one, or listing every parameter
    that is missing, extra or misshaped.
    """
    path = Path(path)
    graph, abstract = abstract_llama(load_config(path))
    weights = path / WEIGHTS
    if not weights.is_dir():
        raise FileNotFoundError(f"{weights}: no such folder")
    wanted = nnx.to_pure_dict(abstract)
    with lenient_loops(), ocp.StandardCheckpointer() as checkpointer:
        stored = _stored(checkpointer, weights)
        if problems := list(misfits(_shapes(wanted), _shapes(stored))):
            raise ValueError(f"{weights}: the checkpoint does not fit its config.json: {'; '.join(problems)}")
        target = jax.tree.map(lambda w, s: w.update(dtype=s.dtype), wanted, stored)
        try:
            restored = checkpointer.restore(weights.absolute(), target)
        except Exception as error:  # TensorStore raises a bare Exception for a damaged file
            raise ValueError(f"{weights}: damaged: {str(error).splitlines()[0]}") from error
    nnx.replace_by_pure_dict(abstract, restored)
    return nnx.merge(graph, abstract)


def abstract_llama(config: LlamaConfig) -> tuple[Any, nnx.State]:
    """The structure of a Llama, and its parameters as shapes (float32, on the first device)."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # wherever the weights were when saved
    return graph, jax.tree.map(lambda leaf: leaf.update(sharding=here), state)


def _stored(checkpointer: ocp.StandardCheckpointer, weights: Path) -> Any:
    """Shapes and dtypes of the arrays in a folder; ValueError where it is no checkpoint."""
    metadata = checkpointer.metadata(weights.absolute()).item_metadata
    if metadata is None:
        raise ValueError(f"{weights}: not an Orbax checkpoint")
    return metadata.tree


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves
    }
