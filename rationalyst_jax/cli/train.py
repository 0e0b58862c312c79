"""`rationalyst train`: fine-tunes a model to write rationales, and exports it."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from rationalyst_jax.report.progress import track_steps
from rationalyst_jax.report.tables import counts_table
from rationalyst_jax.train.config import TrainConfig


def run(rationales: Path, model: str, prompts: str, run_dir: Path, train: TrainConfig) -> None:
    """Fine-tune a model to write the kept rationales; exports Hugging Face format.

    Args:
        rationales: Parquet file of rationales; where it was filtered, only the kept ones are used.
        model: Checkpoint folder to start from ("world": the one shipped).
        prompts: A shipped prompt set (llama3, world) or a YAML file.
        run_dir: Folder for checkpoints, metrics.jsonl, loss.png and the trained model (hf/); a killed run
            continues.
    """
    from rationalyst_jax.files.settings import claim, file_digest
    from rationalyst_jax.lm.prompt import load_prompts
    from rationalyst_jax.pipeline.checkpoint import open_checkpoint
    from rationalyst_jax.report.plots import loss_curve
    from rationalyst_jax.train.export import export
    from rationalyst_jax.train.loop import fit
    from rationalyst_jax.train.rationales import read_rationales

    console = Console()
    prompt_set, checkpoint = load_prompts(prompts), open_checkpoint(model)
    examples = read_rationales(rationales, checkpoint.tokenizer, prompt_set)
    start = checkpoint.fingerprint
    asked = {"rationales": file_digest(rationales), "model": start, "prompts": prompt_set.version}
    claim(run_dir / "train.config.json", {**asked, "train": asdict(train)}, run_dir / "checkpoints")
    base = checkpoint.load()
    with track_steps(console) as progress:
        result = fit(base, examples, train, run_dir, starts_from=start, progress=progress)
    export(result.model, checkpoint.tokenizer, run_dir / "hf")
    loss_curve(run_dir / "metrics.jsonl", run_dir / "loss.png")
    rows: dict[str, object] = {
        "rationales": result.examples,
        "for validation": result.validation_examples,
        "too long": result.dropped,
        "tokens": result.sequence_tokens,
        "tokens in trees": result.tree_tokens,
        "steps": result.steps,
        "loss (nats a token)": result.metrics["loss"],
    }
    if "val_loss" in result.metrics:
        rows["validation loss (nats a token)"] = result.metrics["val_loss"]
    console.print(counts_table("trained", rows))
