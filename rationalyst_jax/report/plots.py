"""Pictures of a run, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
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
    figure = Figure(figsize=(7, _height(results)), layout="constrained")
    axes = figure.subplots()
    _bars(axes, results)
    axes.set_xlabel("accuracy (%), 95 % interval")
    figure.savefig(png, dpi=120)


def accuracy_panels(panels: Mapping[str, Mapping[str, Mapping[str, Any]]], png: Path) -> None:
    """Draws one chart as `accuracy_chart` draws it under each title, in two columns; at least one title."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    height = max(map(_height, panels.values()))
    figure = Figure(figsize=(7 * columns, rows * height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, results) in zip(grid, panels.items(), strict=False):
        _bars(axes, results)
        axes.set_title(_plain(title), loc="left")
    for axes in grid[len(panels) :]:
        axes.remove()
    figure.supxlabel("accuracy (%), 95 % interval")
    figure.savefig(png, dpi=120)


def _plain(text: str) -> str:
    """A text that matplotlib draws as it is: between two signs of dollar it would read mathematics."""
    return text.replace("$", r"\$")


def _height(results: Mapping[str, Any]) -> float:
    """Inches of a chart with so many bars."""
    return 0.8 + 0.36 * len(results)


def _bars(axes: Axes, results: Mapping[str, Mapping[str, Any]]) -> None:
    names = list(results)[::-1]
    accuracy = [100 * results[name]["accuracy"] for name in names]
    below = [100 * (results[name]["accuracy"] - results[name]["low"]) for name in names]
    above = [100 * (results[name]["high"] - results[name]["accuracy"]) for name in names]
    axes.barh(
        [*map(_plain, names)],
        accuracy,
        xerr=[below, above],
        color="#7aa6c2",
        ecolor="#333333",
        capsize=3,
        height=0.65,
    )
    for y, (value, up) in enumerate(zip(accuracy, above, strict=True)):
        axes.text(value + up + 1.5, y, f"{value:.1f}", va="center")
    axes.set_xlim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)


def accuracy_curve(
    label: str, x: Sequence[float], lines: Mapping[str, Sequence[Mapping[str, Any]]], png: Path
) -> None:
    """Draws accuracies over the values `x` of a setting, with their 95 % intervals as bars.

    The values stand evenly apart, as sweeps are seldom even. lines: by name, one result (`accuracy`, `low`,
    `high` in 0..1) for each value. One that has the same result everywhere is drawn flat, with its interval
    as a band.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, results) in enumerate(lines.items()):
        shown = _plain(name)
        color = f"C{number}"
        accuracy, low, high = ([100 * r[key] for r in results] for key in ("accuracy", "low", "high"))
        if len(results) > 1 and all(result == results[0] for result in results):
            axes.axhline(accuracy[0], linestyle="--", color=color, label=shown)
            axes.axhspan(low[0], high[0], color=color, alpha=0.12, linewidth=0)
            continue
        below = [value - end for value, end in zip(accuracy, low, strict=True)]
        above = [end - value for value, end in zip(accuracy, high, strict=True)]
        places = np.arange(len(x)) + 0.04 * number  # the bars of two lines must not hide each other
        axes.errorbar(
            places, accuracy, yerr=[below, above], fmt="o-", color=color, capsize=3, label=_plain(name)
        )
    axes.set(xlabel=_plain(label), ylabel="accuracy (%), 95 % interval", ylim=(0, 100))
    axes.set_xticks(range(len(x)), [f"{value:g}" for value in x])
    figure.legend(frameon=False, loc="outside upper center", ncols=len(lines))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=120)


def gain_histogram(gains: Mapping[str, Sequence[float]], png: Path) -> None:
    """Draws how gains (nats) are distributed, one panel for each name, all on the same bins and scales.

    The bins reach over the middle 99 % of all gains; what lies beyond is counted in the outermost ones, so
    that nothing is left out. Shares are on a logarithmic scale, because few gains are far from 0. A dashed
    line is at each mean.
    """
    every = np.concatenate([np.asarray(values, dtype=np.float64) for values in gains.values()])
    low, high = np.quantile(every, (0.005, 0.995))
    width = max((high - low) / 40, 1e-6)
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + 1.5)  # 0 is between two bins
    figure = Figure(figsize=(7, 0.8 + 1.3 * len(gains)), layout="constrained")
    panels = figure.subplots(len(gains), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(panels, gains.items(), strict=True):
        inside = np.clip(values, edges[0], edges[-1])
        axes.hist(inside, edges, weights=np.full(len(values), 100 / len(values)), color="#7aa6c2")
        axes.axvline(0, color="#333333", linewidth=0.8)
        axes.axvline(float(np.mean(values)), color="#b03a2e", linestyle="--", linewidth=1.2)
        axes.set(ylabel="%", yscale="log")
        title = f"{_plain(name)}: n = {len(values)}, mean {np.mean(values):+.2f}"
        axes.set_title(title, loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("gain of the following text (nats); dashed: mean")
    figure.savefig(png, dpi=120, format="png")
