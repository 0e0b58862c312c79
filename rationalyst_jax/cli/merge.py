"""`rationalyst merge`: a model with its adapters added, as one checkpoint."""

from pathlib import Path

from rich.console import Console

from rationalyst_jax.report.tables import certificate_rows, counts_table


def run(model: str, adapters: Path, out: Path, verify: bool = False) -> None:
    """Add LoRA adapters to the model they belong to, and write a plain Hugging Face checkpoint.

    Args:
        model: Checkpoint folder of the model, or "world" for the shipped one.
        adapters: Folder of adapters in PEFT's format, such as the folder adapters/ of a training run.
        out: New folder to write.
        verify: Read the checkpoint back, compare it with the model in memory, and leave what was found beside
            it as certificate.json (docs/export.md).
    """
    from rationalyst_jax.files.lock import locked
    from rationalyst_jax.lm.weights.certificate import certify
    from rationalyst_jax.lm.weights.open import model_name, open_checkpoint
    from rationalyst_jax.lm.weights.peft import load_adapters
    from rationalyst_jax.train.export import export
    from rationalyst_jax.world.checkpoint import checkpoint_path

    with locked(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out}: exists already; give a new folder")
        checkpoint = open_checkpoint(checkpoint_path(model))
        base = checkpoint.load()
        base.adapters = load_adapters(base, adapters)
        config = base.adapters.config
        export(base, checkpoint.path, out, name=checkpoint.base or model_name(model))
        certificate = certify(base, out) if verify else None
    rows = {
        "rank": config.rank,
        "alpha": config.alpha,
        "projections": ", ".join(config.projections),
        "to": out,
        **certificate_rows(certificate),
    }
    Console().print(counts_table("merged", rows))
