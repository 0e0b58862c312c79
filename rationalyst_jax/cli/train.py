"""`rationalyst train`: fine-tunes a model to write rationales, and exports it."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from rationalyst_jax.files.interruption import end_at_sigterm
from rationalyst_jax.lm.devices.distributed import DistributedConfig, is_main, start
from rationalyst_jax.report.progress import track_steps
from rationalyst_jax.report.tables import counts_table
from rationalyst_jax.train.config import TrainConfig


def run(
    rationales: str,
    model: str,
    prompts: str,
    run_dir: Path,
    train: TrainConfig,
    distributed: DistributedConfig,
    resume: Literal["auto", "never"] = "auto",
    profile: int = 0,
    wandb: str | None = None,
) -> None:
    """Fine-tune a model to write the kept rationales, and export it in Hugging Face format.

    Args:
        rationales: Parquet file of rationales, a folder of such files, or a JSONL file, of which only the
            kept ones are used; or tfds:rationalyst_rationales[:SPLIT][@DIR], a set that `rationalyst data`
            prepared in DIR.
        model: Checkpoint folder to start from, or "world" for the shipped model.
        prompts: Prompt set: the name of a shipped one (llama3, world), or a YAML file.
        run_dir: Folder to write: checkpoints, metrics.jsonl, tensorboard, loss.png, and the trained model in
            hf/. Trained adapters are also in adapters/, in PEFT's format.
        train: How the model is trained.
        distributed: How several processes find each other.
        resume: What to do where run_dir has checkpoints: "auto" continues from the latest whole one, "never"
            refuses to start.
        profile: Number of steps of this start to trace, into run_dir/profile.
        wandb: Project of Weights & Biases that the metrics are sent to as well.
    """
    end_at_sigterm()
    start(distributed)
    from rationalyst_jax.lm.engine.config import EngineConfig
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.pipeline.train import train as fine_tune
    from rationalyst_jax.prompts.prompt import load_prompts

    console = Console(quiet=not is_main())
    prompt_set = load_prompts(prompts)
    with Models(EngineConfig()) as models, track_steps(console) as (progress, note):
        summary = fine_tune(
            rationales,
            model,
            models,
            prompt_set,
            train,
            run_dir,
            resume=resume,
            profile=profile,
            wandb=wandb,
            progress=progress,
            note=note,
        )
    rows: dict[str, object] = {
        "rationales": summary.rationales,
        "for validation": summary.validation,
        "too long": summary.too_long,
        "tokens": summary.tokens,
        "tokens in trees": summary.tree_tokens,
        "steps": summary.steps,
    }
    if summary.metrics:
        rows["loss (nats a token)"] = summary.metrics["loss"]
    if "val_loss" in summary.metrics:
        rows["validation loss (nats a token)"] = summary.metrics["val_loss"]
    console.print(counts_table("trained", rows))
