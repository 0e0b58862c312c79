"""Pictures of a run, as PNG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rationalyst_jax.files.rows import read_rows


def loss_curve(metrics: Path, png: Path) -> None:
    """Draws training and validation loss (nats per target token) over steps from a metrics.jsonl.

    Raises ValueError for a file without rows, or with a line that is no JSON object.
    """
    rows = [row for _, row in read_rows(metrics)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=1, label="training")
    checked = [row for row in rows if "val_loss" in row]
    if checked:
        steps = [row["step"] for row in checked]
        losses = [row["val_loss"] for row in checked]
        axes.plot(steps, losses, "o-", label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per target token)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=120)


def accuracy_chart(results: Mapping[str, Mapping[str, Any]], png: Path) -> None:
    """Draws accuracies with their 95 % intervals, one bar per result (`accuracy`, `low`, `high` in 0..1)."""
    names = list(results)[::-1]
    figure = Figure(figsize=(7, 0.8 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    accuracy = [100 * results[name]["accuracy"] for name in names]
    below = [100 * (results[name]["accuracy"] - results[name]["low"]) for name in names]
    above = [100 * (results[name]["high"] - results[name]["accuracy"]) for name in names]
    axes.barh(names, accuracy, xerr=[below, above], color="#7aa6c2", ecolor="#333333", capsize=3, height=0.65)
    for y, (value, up) in enumerate(zip(accuracy, above, strict=True)):
        axes.text(value + up + 1.5, y, f"{value:.1f}", va="center")
    axes.set(xlabel="accuracy (%), 95 % interval", xlim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=120)
