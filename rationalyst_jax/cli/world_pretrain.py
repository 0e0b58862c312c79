"""`rationalyst world pretrain`"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from rationalyst_jax.pipeline.config import PretrainConfig
from rationalyst_jax.report.progress import track_steps
from rationalyst_jax.report.tables import counts_table


def run(run_dir: Path, **config: Any) -> None:
    """Train the embedded world's base model from scratch.

    Args:
        run_dir: Folder to write: checkpoints, metrics.jsonl, loss.png, and the model in hf/. A killed run
            continues there.
        config: Passed on.
    """
    from rationalyst_jax.files.settings import claimed
    from rationalyst_jax.pipeline.pretrain import pretrain
    from rationalyst_jax.report.plots import loss_curve

    console = Console()
    asked = PretrainConfig(**config)
    with (
        claimed(run_dir / "pretrain.config.json", asdict(asked), run_dir / "checkpoints"),
        track_steps(console) as (progress, note),
    ):
        result = pretrain(asked, run_dir, progress=progress, note=note)
    loss_curve(run_dir / "metrics.jsonl", run_dir / "loss.png")
    rows = {"texts": result.examples, "steps": result.steps, **result.metrics, "model": run_dir / "hf"}
    console.print(counts_table("pre-trained", rows))
