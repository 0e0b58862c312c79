"""An experiment that changes one setting at a time: what each RATIONALYST learns from, who scores, curves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.mine.store import read_filtered
from rationalyst_jax.pipeline.config import Curve, ExperimentConfig, Rationalyst, Run, WorldData
from rationalyst_jax.pipeline.experiment import run
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.report.plots import accuracy_curve
from rationalyst_jax.report.tables import accuracy_table, training_table
from rationalyst_jax.train.config import TrainConfig

CONSOLE = Console(quiet=True)
TAU = -0.02
SHARE = 0.4


def tiny(run_dir: Path) -> ExperimentConfig:
    return ExperimentConfig(
        run_dir=str(run_dir),
        model="world",
        prompts="world",
        world=WorldData(documents=24, questions=4),
        engine=EngineConfig(max_sequences=24),
        annotate=AnnotateConfig(length_margin=80),
        filter=FilterConfig(tau=0.05, suppress=("<BOT>",), row_length=512),
        train=TrainConfig(
            steps=2, batch_examples=4, row_length=320, microbatch_rows=1, validation_fraction=0.0
        ),
        reason=ReasonConfig(max_steps=3, max_step_tokens=24, max_rationale_tokens=24, suppress=("<BOT>",)),
        rationalysts={"some": Rationalyst(tau=TAU, share=SHARE)},
        strategies={"implicit": Run("implicit", rationalyst="some"), "random": Run("random")},
        ablations={
            "own scorer": Run("implicit", rationalyst="some", scorer="rationalyst"),
            "plain mean": Run("implicit", rationalyst="some", reduction="mean"),
            "slow decay": Run("implicit", rationalyst="some", decay=0.99),
            "greedy": Run("greedy", full=True),
        },
        baseline="implicit",
        curves={
            "decay": Curve(
                "decay", [0.9, 0.99], {"implicit": ["implicit", "slow decay"], "flat": ["random"] * 2}
            ),
            "left out": Curve("x", [1], {"greedy": ["greedy"]}),
        },
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("ablations") / "run"
    return run_dir, run(tiny(run_dir), full=False, console=CONSOLE)


def traces(run_dir: Path, name: str) -> list[dict[str, Any]]:
    lines = (run_dir / "reason" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def made_with(run_dir: Path, name: str) -> dict[str, Any]:
    return json.loads((run_dir / "reason" / f"{name}.jsonl.config.json").read_text())


def test_a_rationalyst_learns_from_its_share_of_what_reaches_its_threshold(finished):
    run_dir, summary = finished
    every = read_filtered(run_dir / "mine" / "filtered.parquet")
    some = read_filtered(run_dir / "mine" / "some.parquet")
    reaching = {(t.document_id, t.index) for t in every if t.gain is not None and t.gain >= TAU}
    learned = {(t.document_id, t.index) for t in some if t.kept}
    assert learned < reaching and len(learned) == round(SHARE * len(reaching)) > 1
    assert {t.tau for t in some} == {TAU}
    counts = summary["training"]["some"]
    assert counts["rationales"] == len(learned) and counts["passes"] == 2 * 4 / len(learned)


def test_who_scores_and_how_is_the_runs_own(finished):
    run_dir, _ = finished
    ordinary = made_with(run_dir, "implicit")
    own = made_with(run_dir, "own_scorer")
    assert ordinary["scorer"] == ordinary["agent"] != ordinary["rationalyst"]
    assert (
        own["scorer"] == own["rationalyst"] == ordinary["rationalyst"] and own["agent"] == ordinary["agent"]
    )
    changed = {"plain_mean": {"reduction": "mean"}, "slow_decay": {"decay": 0.99}}
    for name, settings in changed.items():
        assert made_with(run_dir, name) == ordinary | settings
    # The first step of each question has the same candidates and the same rationale, and other scores.
    for name in ("own_scorer", *changed):
        differ = 0
        for ours, theirs in zip(traces(run_dir, "implicit"), traces(run_dir, name), strict=True):
            first, other = ours["steps"][0], theirs["steps"][0]
            assert first["candidates"] == other["candidates"] and first["rationale"] == other["rationale"]
            differ += first["scores"] != other["scores"]
        assert differ, name


def test_every_run_is_compared_with_the_baseline(finished):
    _, summary = finished
    results = {**summary["strategies"], **summary["ablations"]}
    assert results["implicit"]["vs_implicit"] is None
    for name, result in results.items():
        if name != "implicit":
            difference = result["accuracy"] - results["implicit"]["accuracy"]
            compared = result["vs_implicit"]
            assert compared["difference"] == pytest.approx(difference)
            assert compared["p_holm"] >= compared["p"]
    assert summary["baseline"] == "implicit"


def test_a_curve_is_drawn_where_all_its_runs_are(finished):
    run_dir, summary = finished
    assert [path.name for path in (run_dir / "curves").iterdir()] == ["decay.png"]
    assert (run_dir / "curves" / "decay.png").read_bytes().startswith(b"\x89PNG")
    assert summary["curves"]["decay"]["lines"]["implicit"] == ["implicit", "slow decay"]


def test_a_finished_experiment_may_be_looked_at_anew(finished):
    run_dir, summary = finished
    curves = {"other": Curve("scorer", [0, 1], {"implicit": ["implicit", "own scorer"]})}
    again = run(replace(tiny(run_dir), baseline="random", curves=curves), full=False, console=CONSOLE)
    assert again["seconds"] == summary["seconds"]
    assert again["strategies"]["implicit"]["vs_random"] == summary["strategies"]["implicit"]["vs_random"]
    assert (run_dir / "curves" / "other.png").is_file()
    run(tiny(run_dir), full=False, console=CONSOLE)


# ---- What is shown ----


def result(accuracy: float, low: float, high: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "low": low, "high": high, "n": 10}


def test_a_curve_shows_accuracies_with_their_intervals(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig

    def kept(figure, *arguments, **options):
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    rising = [result(0.2, 0.1, 0.35), result(0.5, 0.4, 0.6), result(0.9, 0.8, 0.95)]
    flat = [result(0.3, 0.25, 0.4)] * 3
    accuracy_curve("N", [1, 3, 8], {"rising": rising, "flat": flat}, tmp_path / "curve.png")
    [axes] = drawn[0].axes
    [bars] = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    points, _, [ends] = bars.lines
    assert points is not None and [*map(float, np.asarray(points.get_ydata()))] == pytest.approx([20, 50, 90])
    spans = [sorted(y for _, y in segment) for segment in ends.get_segments()]
    assert spans == [pytest.approx(span) for span in ([10, 35], [40, 60], [80, 95])]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3", "8"]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 1 and list(dashed[0].get_ydata()) == pytest.approx([30, 30])


def shown(table: Any) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_a_table_says_whether_all_were_trained_for_equally_long():
    counts = {"rationales": 80, "steps": 20, "passes": 4.0, "loss": 0.5}
    equal = shown(training_table("training", {"a": counts, "b": {**counts, "validation loss": 0.25}}, 16))
    assert "equal budgets: 20 steps of 16 examples" in equal and "UNEQUAL" not in equal
    assert "0.250" in equal and "4.0" in equal
    unequal = shown(training_table("training", {"a": counts, "b": {**counts, "steps": 5}}, 16))
    assert "UNEQUAL budgets: 5 to 20 steps of 16 examples" in unequal


def test_a_table_compares_with_the_baselines_it_is_told():
    rows = {"a": result(0.5, 0.4, 0.6), "b": result(0.6, 0.5, 0.7) | {"vs_b": None}}
    for p_holm, said in ((0.04321, "0.043"), (1e-9, "<0.001")):
        rows["a"] |= {"vs_b": {"difference": -0.1, "low": -0.2, "high": 0.05, "p_holm": p_holm}}
        text = shown(accuracy_table("runs", rows, ["b"]))
        assert "− b [95 %]" in text and "-10.0 [-20.0, 5.0]" in text and "random" not in text
        assert "Holm" in text and said in text
    assert "Holm" not in shown(accuracy_table("runs", rows, ["b", "c"]))


# ---- What is refused ----

SOME = {"some": Rationalyst()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "y"}, "the baseline 'y' is no run, there are implicit, random, x"),
        (
            {"rationalysts": {**SOME, "y": Rationalyst(share=0.0)}},
            "rationalyst 'y': filter: share must be ab",
        ),
        ({"rationalysts": {**SOME, "y": Rationalyst(share=1.1)}}, "'y': .* above 0 and at most 1, got 1.1"),
        ({"rationalysts": {**SOME, "y": Rationalyst(tau=float("nan"))}}, "'y': filter: tau must be finite"),
        ({"rationalysts": {**SOME, "y": Rationalyst("all", tau=0.0)}}, "'y' keeps all, its tau changes"),
        ({"rationalysts": {**SOME, "y": Rationalyst(share=0.5, train=False)}}, "'y' is not trained, its sha"),
        ({"ablations": {"x": Run("implicit", rationalyst="y")}}, "'x' wants rationalyst 'y', there are some"),
        ({"ablations": {"x": Run("likelihood", scorer="rationalyst")}}, "run 'x' wants its rationalyst as"),
        ({"ablations": {"x": Run("random", reduction="mean")}}, "run 'x': scores no candidates, its reduct"),
        ({"ablations": {"x": Run("judge", decay=0.5)}}, "run 'x': scores no candidates, its decay changes"),
        (
            {"ablations": {"x": Run("explicit", rationalyst="some", scorer="rationalyst")}},
            "run 'x' asks no scorer, its scorer changes nothing",
        ),
        ({"ablations": {"x": Run("likelihood", decay=2.0)}}, "run 'x': reason: decay must be above 0 and at"),
        ({"curves": {"c": Curve("x", [1, 2], {"l": ["random"]})}}, "'c': line 'l' has 1 runs for 2 values"),
        ({"curves": {"c": Curve("x", [1], {"l": ["y"]})}}, "curve 'c': line 'l' wants run 'y', there are"),
        (
            {"curves": {"c": Curve("x", [2, 1], {"l": ["random"] * 2})}},
            r"x must be finite and ascend, got \[",
        ),
        ({"curves": {"c": Curve("x", [], {"l": []})}}, "'c': x must be finite and ascend"),
        ({"curves": {"c": Curve("x", [1], {})}}, "curve 'c' has no lines"),
        (
            {"curves": {name: Curve("x", [1], {"l": ["random"]}) for name in ("a b", "a/b")}},
            "'a b' and 'a/b' would share",
        ),
    ],
)
def test_what_cannot_be_or_would_change_nothing_is_refused_before_anything_is_written(
    tmp_path, changes, message
):
    config = {"baseline": None, "curves": {}, "ablations": {"x": Run("random")}} | changes
    with pytest.raises(ValueError, match=message):
        run(replace(tiny(tmp_path / "run"), **config), full=True, console=CONSOLE)
    assert not (tmp_path / "run").exists()
