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
        train: How it is trained.
        distributed: Which other processes take part.
        resume: "auto" continues from the latest whole checkpoint in run_dir, "never" refuses to.
        profile: Trace so many steps of this start, into run_dir/profile.
        wandb: Project of Weights & Biases that gets the metrics too.
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
