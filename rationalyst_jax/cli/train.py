"""`rationalyst train`: fine-tunes a model to write rationales, and exports it."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from rationalyst_jax.lm.devices.distributed import DistributedConfig, is_main, start
from rationalyst_jax.report.progress import track_steps
from rationalyst_jax.report.tables import counts_table
from rationalyst_jax.train.config import TrainConfig


def run(
    rationales: Path,
    model: str,
    prompts: str,
    run_dir: Path,
    train: TrainConfig,
    distributed: DistributedConfig,
    resume: Literal["auto", "never"] = "auto",
    profile: int = 0,
    wandb: str | None = None,
) -> None:
    """Fine-tune a model to write the kept rationales; exports Hugging Face format.

    Args:
        rationales: Parquet file of rationales, a folder of them, or JSONL; where it was filtered, only the
            kept ones are used.
        model: Checkpoint folder to start from ("world": the one shipped).
        prompts: A shipped prompt set (llama3, world) or a YAML file.
        run_dir: Folder for checkpoints, metrics.jsonl, tensorboard, loss.png and the trained model (hf/;
            adapters also in PEFT's format in adapters/).
        resume: "auto" continues from the latest whole checkpoint in run_dir, "never" refuses to.
        profile: Trace so many steps of this start, into run_dir/profile.
        wandb: Project of Weights & Biases that gets the metrics too.
    """
    start(distributed)
    import jax

    from rationalyst_jax.files.settings import begun, claim, file_digest
    from rationalyst_jax.lm.devices.sharding import mesh_of
    from rationalyst_jax.lm.weights.open import open_checkpoint
    from rationalyst_jax.lm.weights.peft import save_adapters
    from rationalyst_jax.prompts.prompt import check_prompts, load_prompts
    from rationalyst_jax.report.plots import loss_curve
    from rationalyst_jax.train.export import export
    from rationalyst_jax.train.loop import fit, knobs_named
    from rationalyst_jax.train.rationales import read_rationales
    from rationalyst_jax.train.store import open_store
    from rationalyst_jax.world.checkpoint import checkpoint_path

    console = Console(quiet=not is_main())
    prompt_set, checkpoint = load_prompts(prompts), open_checkpoint(checkpoint_path(model))
    check_prompts(checkpoint.tokenizer, prompt_set, ["rationale"])
    mesh = mesh_of(train.mesh, jax.devices())
    if not rationales.exists():
        raise FileNotFoundError(f"{rationales}: no such file of rationales")
    made_of = {
        "rationales": file_digest(rationales),
        "model": checkpoint.fingerprint,
        "prompts": prompt_set.version,
    }
    checkpoints = run_dir / "checkpoints"
    claim(run_dir / "train.config.json", {**made_of, "train": train.decides()}, checkpoints, write=is_main())
    if resume == "never" and begun(checkpoints):
        raise ValueError(
            f"{checkpoints}: holds checkpoints, and resume is never; remove it or write elsewhere"
        )

    def examples():
        return read_rationales(rationales, checkpoint.tokenizer, prompt_set)

    checkpoint.check(mesh)
    store = open_store(run_dir / "data", made_of, examples, train.row_length, train.batch_examples)
    with knobs_named(train):
        base = checkpoint.load(train.master_dtype if train.lora is None else train.dtype, mesh)
    with track_steps(console) as (progress, note):
        result = fit(
            base,
            store,
            train,
            run_dir,
            mesh=mesh,
            starts_from=checkpoint.fingerprint,
            progress=progress,
            note=note,
            profile=profile,
            wandb=wandb,
        )
    trained, stored = result.model, checkpoint.stored_dtype()
    if trained.adapters is not None:
        save_adapters(trained, run_dir / "adapters", base=model)
        if stored != train.dtype:  # the adapters were trained beside rounded weights
            trained = checkpoint.load(mesh=mesh)
            trained.adapters = result.model.adapters
    export(trained, checkpoint.path, run_dir / "hf", stored)
    if not is_main():
        return
    rows: dict[str, object] = {
        "rationales": result.examples,
        "for validation": result.validation_examples,
        "too long": result.dropped,
        "tokens": result.sequence_tokens,
        "tokens in trees": result.tree_tokens,
        "steps": result.steps,
    }
    if result.metrics:
        loss_curve(run_dir / "metrics.jsonl", run_dir / "loss.png")
        rows["loss (nats a token)"] = result.metrics["loss"]
    if "val_loss" in result.metrics:
        rows["validation loss (nats a token)"] = result.metrics["val_loss"]
    console.print(counts_table("trained", rows))
