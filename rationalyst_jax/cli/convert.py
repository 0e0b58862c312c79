"""`rationalyst convert`: checkpoints from Hugging Face's form to Orbax and back."""

from argparse import ArgumentError
from pathlib import Path
from typing import Literal

from rich.console import Console

from rationalyst_jax.report.tables import certificate_rows, counts_table


def run(
    source: Path,
    target: Path,
    dtype: Literal["float32", "bfloat16"] | None = None,
    tokenizer: Path | None = None,
    verify: bool = False,
) -> None:
    """Convert a checkpoint.

    A Hugging Face checkpoint becomes an Orbax one. An Orbax checkpoint, or the latest one of a training run,
    becomes a Hugging Face one.

    Args:
        source: Checkpoint folder, or the run directory of a training.
        target: New folder to write.
        dtype: Type of the weights to write; by default as they are stored (float32 in a training run).
        tokenizer: Folder with the tokenizer files to copy; by default the source.
        verify: Read the Hugging Face checkpoint back, compare it with the model in memory, and leave what was
            found beside it as certificate.json (docs/export.md).
    """
    import jax
    from flax import nnx

    from rationalyst_jax.files.lock import locked
    from rationalyst_jax.lm.weights.certificate import certify
    from rationalyst_jax.lm.weights.hf import copy_tokenizer, load_llama, save_llama
    from rationalyst_jax.lm.weights.orbax import WEIGHTS, load_orbax, save_orbax
    from rationalyst_jax.train.checkpoints import load_trained

    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such checkpoint folder")
    if tokenizer is not None and not (tokenizer / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{tokenizer}: no tokenizer.json")
    to_orbax = not any((source / folder).is_dir() for folder in ("checkpoints", WEIGHTS))
    if verify and to_orbax:
        raise ArgumentError(None, f"--verify is for Hugging Face checkpoints; {source} becomes an Orbax one")
    if verify and not ((tokenizer or source) / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{tokenizer or source}: no tokenizer.json, which --verify needs")
    with locked(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{target}: exists already; give a new folder")
        if (source / "checkpoints").is_dir():
            model = load_trained(source / "checkpoints")
            kind = "training run"
        elif (source / WEIGHTS).is_dir():
            model = load_orbax(source)
            kind = "Orbax"
        else:
            model = load_llama(source)
            kind = "Hugging Face"
        graph, weights = nnx.split(model)
        if dtype is not None:
            weights = jax.tree.map(lambda w: w.astype(dtype), weights)
        model = nnx.merge(graph, weights)
        save = save_orbax if to_orbax else save_llama
        save(model, target)
        copied = copy_tokenizer(tokenizer or source, target)
        certificate = certify(model, target) if verify else None

    rows = {
        "from": f"{kind}: {source}",
        "to": f"{'Orbax' if to_orbax else 'Hugging Face'}: {target}",
        "parameters": sum(w.size for w in jax.tree.leaves(weights)),
        "dtype": ", ".join(sorted({str(w.dtype) for w in jax.tree.leaves(weights)})),
        "tokenizer files": copied,
        **certificate_rows(certificate),
    }
    Console().print(counts_table("converted", rows))
