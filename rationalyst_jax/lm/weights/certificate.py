"""What shows that an exported folder holds the model it was written from: it is read back and compared.

The config must say the same, the weights must be the same bits, and the logits of some texts must agree. The
folder is read by `load_llama` and, where torch is installed, by transformers, which shares no code with the
writer. The findings are left in the folder as `certificate.json`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import nnx
from jax import Array
from scipy.special import log_softmax
from transformers import PreTrainedTokenizerBase
from transformers.utils.import_utils import is_torch_available
from transformers.utils.logging import disable_progress_bar

from rationalyst_jax.files.settings import differences, package_versions
from rationalyst_jax.files.whole import write_json
from rationalyst_jax.lm.devices.precision import precision_of
from rationalyst_jax.lm.model.llama import Llama, tree_attend
from rationalyst_jax.lm.weights.hf import load_config, load_llama
from rationalyst_jax.lm.weights.open import open_checkpoint
from rationalyst_jax.lm.weights.tensor_files import sha256, stored_tensors

CERTIFICATE = "certificate.json"
# How far float32 may differ where only the order of sums does, at every place of every text: in a logit, and
# in the KL divergence (nats) of the next token's distributions.
LIMITS = {"logits": 1e-2, "kl_nats": 1e-4}
TEXTS = (
    "A baker fills 12 trays with 8 rolls each and sells 70 rolls. How many rolls are left?\n"
    "There are 12 * 8 = 96 rolls.\n96 - 70 = 26 rolls are left.\nThe answer is 26.",
    "def area(width, height):\n    # of a rectangle, in square metres\n    return width * height",
    "Über den Fluss führt eine Brücke. Мост узкий. 桥很窄。 🙂 (x = [y], 3.14, 1,000)",
)
LONG = 640  # tokens of one more text, which repeats these: short ones hide mistakes of RoPE


def certify(model: Llama, path: Path) -> dict[str, Any]:
    """Compares the Hugging Face folder `path` with the `model` that it was written from, on one device.

    Returns what `certificate.json` in the folder says from then on: the SHA-256 of every stored tensor and of
    every other file, the largest differences, versions. Logits are computed in float32, one reader after the
    other: beside the model this takes its size and 4 bytes a parameter. Raises FileNotFoundError or
    ValueError naming the folder and what is missing, damaged or different.
    """
    (path / CERTIFICATE).unlink(missing_ok=True)
    config = asdict(model.config)
    if found := list(differences(config, asdict(load_config(path)))):
        raise ValueError(f"{path}: config.json differs from the model: {', '.join(found)}")
    checkpoint = open_checkpoint(path)
    texts = [*_token_ids(checkpoint.tokenizer, min(LONG, model.config.max_position_embeddings))]
    versions = package_versions()
    with _short_memory_told(path):
        read = load_llama(path)
        _check_weights(path, model, read)
        wanted = _logits(model, texts)
        found = _logits(read, texts)
        del read
    readers = {"rationalyst_jax": _largest_differences(path, "rationalyst_jax", wanted, found)}
    if is_torch_available():
        found = _logits_of_transformers(path, texts)
        readers["transformers"] = _largest_differences(path, "transformers", wanted, found)
        versions["torch"] = version("torch")
    stored = stored_tensors(path)
    others = (file for file in path.iterdir() if file.is_file() and file.suffix != ".safetensors")
    certificate = {
        "fingerprint": checkpoint.fingerprint,
        "readers": readers,
        "limits": LIMITS,
        "texts": {"tokens": [len(ids) for ids in texts], "given": TEXTS},
        "versions": versions,
        "tensors": {
            key: {"dtype": tensor.dtype, "shape": tensor.shape, "sha256": sha256(tensor)}
            for key, tensor in sorted(stored.items())
        },
        "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(others)},
    }
    write_json(path / CERTIFICATE, certificate)
    return certificate


@contextmanager
def _short_memory_told(path: Path) -> Iterator[None]:
    """A context in which the want of a device's memory is a ValueError that says what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"{path}: is written, but not verified: the device's memory does not suffice; remove the folder, "
            "and do it again with JAX_PLATFORMS=cpu"
        ) from None


def _token_ids(tokenizer: PreTrainedTokenizerBase, long: int) -> Iterator[np.ndarray]:
    """The token ids of each text, and those of a text of `long` tokens."""
    texts = [np.asarray(tokenizer(text)["input_ids"], np.int32) for text in TEXTS]
    yield from (ids[:long] for ids in texts)
    yield np.resize(np.concatenate(texts), long)


def _check_weights(path: Path, model: Llama, read: Llama) -> None:
    """Raises ValueError naming the first parameter, and layer, that isn't the same bits in both models."""
    stored = dict(nnx.to_flat_state(nnx.state(read)))
    for name, parameter in nnx.to_flat_state(nnx.state(model)):
        ours, theirs = (np.asarray(p.get_value()) for p in (parameter, stored[name]))
        called = ".".join(map(str, name))
        if ours.dtype != theirs.dtype:
            raise ValueError(f"{path}: {called} is stored in {theirs.dtype}, not in {ours.dtype}")
        stacked = name[0] == "layers"
        for layer, pair in enumerate(zip(ours, theirs, strict=True) if stacked else [(ours, theirs)]):
            one, other = (np.ascontiguousarray(values).view(np.uint8) for values in pair)
            if not np.array_equal(one, other):
                where = f" of layer {layer}" if stacked else ""
                raise ValueError(f"{path}: the values of {called}{where} are not those of the model")


def _logits(model: Llama, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The logits of each text, float32 `[T, V]`, computed in float32: all texts are packed in one row."""
    graph, weights = nnx.split(model)
    model = nnx.merge(graph, jax.tree.map(lambda w: w.astype(jnp.float32), weights))
    ends = np.cumsum([len(ids) for ids in texts])
    token_1T, position_1T, size_1T = np.zeros((3, 1, -(-ends[-1] // 128) * 128), np.int32)
    size_1T[:] = 1  # what fills the row sees itself alone
    for ids, end in zip(texts, ends, strict=True):
        place = slice(end - len(ids), end)
        token_1T[0, place] = ids
        position_1T[0, place] = np.arange(len(ids))
        size_1T[0, place] = np.arange(len(ids), 0, -1)
    logits_1TV = np.asarray(_packed_logits(model, token_1T, position_1T, size_1T))
    return np.split(logits_1TV[0, : ends[-1]], ends[:-1])


@jax.jit
def _packed_logits(model: Llama, token_BT: Array, position_BT: Array, subtree_size_BT: Array) -> Array:
    hidden_BTD, _ = model(token_BT, position_BT, tree_attend(subtree_size_BT))
    head_VD = model.output_VD()
    return jnp.einsum("btd,vd->btv", hidden_BTD, head_VD, precision=precision_of(hidden_BTD, head_VD))


def _logits_of_transformers(path: Path, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The logits as transformers computes them, with torch, on the CPU. Raises ValueError for keys that it
    misses or does not know."""
    disable_progress_bar()
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path, local_files_only=True, dtype="float32", output_loading_info=True
    )
    model, found = loaded
    if keys := sorted(str(key) for kind in found.values() for key in kind):
        raise ValueError(f"{path}: transformers cannot place {', '.join(keys)}")
    model.requires_grad_(False)
    inputs = (transformers.BatchEncoding({"input_ids": ids[None]}, tensor_type="pt") for ids in texts)
    return [model(input_ids=one["input_ids"].long()).logits[0].numpy() for one in inputs]


def _largest_differences(
    path: Path, reader: str, wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> dict[str, float]:
    """The largest difference of two models' logits, and the largest KL divergence from the one to the other
    (nats), over all places. Raises ValueError where one is beyond its limit, or no number."""
    largest = dict.fromkeys(LIMITS, 0.0)
    for texts in zip(wanted, found, strict=True):
        for one, other in zip(*texts, strict=True):
            p, q = (log_softmax(logits.astype(np.float64)) for logits in (one, other))
            here = {"logits": np.abs(one - other).max(), "kl_nats": np.exp(p) @ (p - q)}
            largest = {name: float(np.maximum(here[name], seen)) for name, seen in largest.items()}
    if any(not value <= LIMITS[name] for name, value in largest.items()):
        said = ", ".join(f"{name} {value:.2g} (limit {LIMITS[name]:g})" for name, value in largest.items())
        raise ValueError(f"{path}: read by {reader} it computes something else than the model: {said}")
    return largest
