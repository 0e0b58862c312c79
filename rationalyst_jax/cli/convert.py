"""`rationalyst convert`: checkpoints between Hugging Face's form, Orbax and GGUF."""

from argparse import ArgumentError
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from rationalyst_jax.report.tables import certificate_rows, counts_table


def run(
    source: Path,
    target: Path,
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] | None = None,
    tokenizer: Path | None = None,
    verify: bool = False,
) -> None:
    """Convert a checkpoint.

    A Hugging Face checkpoint becomes an Orbax one. An Orbax checkpoint, or the latest one of a training run,
    becomes a Hugging Face one. A GGUF file becomes a Hugging Face checkpoint, and with a target that ends in
    .gguf each of the others becomes a GGUF file, which llama.cpp loads (docs/gguf.md).

    Args:
        source: Checkpoint folder, the run directory of a training, or a GGUF file.
        target: New folder to write, or a new file that ends in .gguf.
        dtype: Type of the weights to write; by default as they are stored (float32 in a training run), and
            float32 from a GGUF file. float16 is for GGUF files, read or written, q8_0 for written ones.
        tokenizer: Folder with the tokenizer files to copy; by default the source.
        verify: Read the Hugging Face checkpoint back, compare it with the model in memory, and leave what was
            found beside it as certificate.json (docs/export.md).
    """
    from rationalyst_jax.files.lock import locked

    to_gguf = target.suffix == ".gguf"
    if tokenizer is not None and not (tokenizer / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{tokenizer}: no tokenizer.json")
    if source.is_file():
        _check_usage(source, target, dtype, tokenizer, verify)
    elif not source.is_dir():
        raise FileNotFoundError(f"{source}: no such checkpoint folder")
    elif to_gguf and verify:
        raise ArgumentError(None, f"--verify is for Hugging Face checkpoints; {target} is a GGUF file")
    elif not to_gguf and dtype in ("float16", "q8_0"):
        raise ArgumentError(None, f"--dtype {dtype} is for GGUF files; {target} doesn't end in .gguf")
    with locked(target):
        if target.exists() and (to_gguf or not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{target}: exists already; give a new {'file' if to_gguf else 'folder'}")
        if source.is_file():
            rows = _from_gguf(source, target, dtype or "float32")
        elif to_gguf:
            rows = _to_gguf(source, target, dtype, tokenizer or source)
        else:
            rows = _between_folders(source, target, dtype, tokenizer or source, verify)
    Console().print(counts_table("converted", rows))


def _check_usage(source: Path, target: Path, dtype: str | None, tokenizer: Path | None, verify: bool) -> None:
    """Raises ArgumentError for an option that a GGUF file as the source has no use for."""
    if target.suffix == ".gguf":
        raise ArgumentError(
            None, f"{source} is a file already: GGUF becomes a Hugging Face checkpoint, a folder"
        )
    if dtype == "q8_0":
        raise ArgumentError(None, f"--dtype q8_0 is for GGUF files that are written; {target} is a folder")
    for option, given in (("--tokenizer", tokenizer), ("--verify", verify)):
        if given:
            raise ArgumentError(None, f"{option} is for checkpoint folders; {source} is a GGUF file")


def _from_gguf(source: Path, target: Path, dtype: str) -> dict[str, Any]:
    """Writes a GGUF file as a Hugging Face checkpoint; gives what the table says."""
    from rationalyst_jax.lm.weights.gguf.reading import gguf_to_hf

    weights = gguf_to_hf(source, target, dtype)
    return {
        "from": f"GGUF: {source}",
        "to": f"Hugging Face: {target}",
        "parameters": weights.size,
        "tensors in the file": _tensor_types(source),
        "dtype": dtype,
    }


def _to_gguf(source: Path, target: Path, dtype: str | None, tokenizer: Path) -> dict[str, Any]:
    """Writes a checkpoint as a GGUF file; gives what the table says."""
    from rationalyst_jax.lm.weights.gguf.writing import save_gguf
    from rationalyst_jax.lm.weights.hf import weights_in, weights_of
    from rationalyst_jax.lm.weights.open import model_name

    if not (tokenizer / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{tokenizer}: no tokenizer.json, which a GGUF file needs: give --tokenizer")
    kind, model = _loaded(source)
    weights = weights_in(source) if model is None else weights_of(model)
    save_gguf(weights, tokenizer, target, model_name(source), dtype)
    return {
        "from": f"{kind}: {source}",
        "to": f"GGUF: {target}",
        "parameters": weights.size,
        "tensors in the file": _tensor_types(target),
    }


def _tensor_types(file: Path) -> str:
    """How many tensors of a GGUF file have which type."""
    from rationalyst_jax.lm.weights.gguf.container import read_header

    kinds = Counter(tensor.kind for tensor in read_header(file).tensors.values())
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def _loaded(source: Path) -> tuple[str, Any]:
    """What kind of checkpoint a folder is, and its model; Hugging Face's is not loaded yet: None."""
    from rationalyst_jax.lm.weights.orbax import WEIGHTS, load_orbax
    from rationalyst_jax.train.checkpoints import load_trained

    if (source / "checkpoints").is_dir():
        return "training run", load_trained(source / "checkpoints")
    if (source / WEIGHTS).is_dir():
        return "Orbax", load_orbax(source)
    return "Hugging Face", None


def _between_folders(
    source: Path, target: Path, dtype: str | None, tokenizer: Path, verify: bool
) -> dict[str, Any]:
    """Writes Hugging Face's form as Orbax, or another one as Hugging Face's; gives what the table says."""
    import jax
    from flax import nnx

    from rationalyst_jax.lm.weights.certificate import certify
    from rationalyst_jax.lm.weights.hf import copy_tokenizer, load_llama, save_llama
    from rationalyst_jax.lm.weights.orbax import WEIGHTS, save_orbax

    to_orbax = not any((source / folder).is_dir() for folder in ("checkpoints", WEIGHTS))
    if verify and to_orbax:
        raise ArgumentError(None, f"--verify is for Hugging Face checkpoints; {source} becomes an Orbax one")
    if verify and not (tokenizer / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{tokenizer}: no tokenizer.json, which --verify needs")
    kind, model = _loaded(source)
    graph, weights = nnx.split(load_llama(source) if model is None else model)
    if dtype is not None:
        weights = jax.tree.map(lambda w: w.astype(dtype), weights)
    model = nnx.merge(graph, weights)
    save = save_orbax if to_orbax else save_llama
    save(model, target)
    copied = copy_tokenizer(tokenizer, target)
    certificate = certify(model, target) if verify else None
    return {
        "from": f"{kind}: {source}",
        "to": f"{'Orbax' if to_orbax else 'Hugging Face'}: {target}",
        "parameters": sum(w.size for w in jax.tree.leaves(weights)),
        "dtype": ", ".join(sorted({str(w.dtype) for w in jax.tree.leaves(weights)})),
        "tokenizer files": copied,
        **certificate_rows(certificate),
    }
