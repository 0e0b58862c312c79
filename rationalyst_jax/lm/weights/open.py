"""A checkpoint as commands open it: what is cheap to check comes first, weights last."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.files.whole import read_json
from rationalyst_jax.lm.devices.sharding import shard_weights
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama, lay_out
from rationalyst_jax.lm.weights.generation import check_generation, with_ends
from rationalyst_jax.lm.weights.hf import check_llama, fingerprint, load_config, load_llama, stored_dtype
from rationalyst_jax.lm.weights.orbax import abstract_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer

BASE = "base.json"  # of an export: the name of the model that training began with


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint folder whose tokenizer fits the model."""

    path: Path
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    config: LlamaConfig
    base: str | None  # the name of the model that this one was trained from, where its folder says so

    def stored_dtype(self) -> np.dtype:
        """The dtype that the weights are stored in; of several, the one that holds them all."""
        return stored_dtype(self.path)

    def check(self, mesh: Mesh) -> None:
        """Raises what `load` on the mesh would raise, before any weight is read."""
        check_llama(self.path)
        shard_weights(abstract_llama(self.config)[1], mesh)

    def check_generation(self) -> None:
        """Raises ValueError where the checkpoint wants answers changed in a way that is not done here."""
        check_generation(self.path)

    def load(self, dtype: DTypeLike | None = None, mesh: Mesh | None = None) -> Llama:
        """The model, divided over the mesh if there is one, in `dtype` or else the dtype it is stored in."""
        return load_llama(self.path, lambda stored: stored if dtype is None else dtype, mesh)

    def load_for_inference(self, mesh: Mesh | None = None, *, int8: bool = False) -> Llama:
        """The model in the dtype in which the mesh, or else the default device, computes with it, and laid
        out as a CPU multiplies (`lay_out`). To train or to save a model, use `load`.

        Its config knows every token that ends a text.
        """
        device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
        model = load_llama(self.path, lambda stored: computable(stored, device), mesh, int8=int8)
        model.config = with_ends(model.config, self.path)
        lay_out(model, mesh)
        return model


def computable(dtype: DTypeLike, device: Any) -> DTypeLike:
    """`dtype`, but float16 for bfloat16 on GPUs before Ampere (a T4, say).

    Those have no bfloat16 arithmetic: XLA would convert every operand to float32 and back.
    """
    old = device.platform == "gpu" and str(device.compute_capability).startswith(("5.", "6.", "7."))
    if old and dtype == jnp.bfloat16:
        return jnp.dtype("float16")
    return dtype


def hub_id(place: str | Path) -> str | None:
    """The name on the Hub of a model that lies in the Hub's cache; None of any other."""
    cached = re.search(r"/models--((?:[\w.-]+?--)?[\w.-]+)/snapshots(?:/|$)", f"/{Path(place).as_posix()}/")
    return cached and cached[1].replace("--", "/", 1)


def model_name(place: str | Path) -> str:
    """What a model is called where others read it: its name on the Hub where it lies in the Hub's cache, else
    that of its folder; a folder `hf` is an export, which is called by its run too."""
    path = Path(place).resolve()
    parts = path.parts
    return hub_id(path) or "/".join(parts[-2:] if parts[-1:] == ("hf",) else parts[-1:])


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Raises FileNotFoundError or ValueError for a missing or broken config.json or tokenizer, a broken
    generation_config.json or base.json, and for a tokenizer with more tokens than the model's vocabulary.
    """
    config = load_config(path)
    with_ends(config, path)
    tokenizer = load_tokenizer(path)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}"
        )
    return Checkpoint(path, fingerprint(path), tokenizer, config, base_of(path))


def base_of(path: Path) -> str | None:
    """The name of the model that the export in a folder began with, None where the folder does not say it.

    Raises ValueError for a malformed base.json.
    """
    if not (path / BASE).exists():
        return None
    name = read_json(path / BASE).get("base")
    if not isinstance(name, str):
        raise ValueError(f"{path / BASE}: base must be text, found {name!r}")
    return name
