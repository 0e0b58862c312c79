"""The whole experiment, small: every stage runs, a killed run ends as an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rationalyst_jax.lm.generate import Engine
from rationalyst_jax.mine.annotate import AnnotateConfig
from rationalyst_jax.mine.likelihood_filter import FilterConfig
from rationalyst_jax.pipeline.config import ExperimentConfig, Rationalyst, Run, WorldData
from rationalyst_jax.pipeline.experiment import run
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.train.config import TrainConfig

CONSOLE = Console(quiet=True)


def small(run_dir: Path) -> ExperimentConfig:
    return ExperimentConfig(
        run_dir=str(run_dir),
        model="world",
        prompts="world",
        world=WorldData(documents=32, questions=16),
        annotate=AnnotateConfig(block=16, length_bucket=32, length_margin=48),
        filter=FilterConfig(tau=0.1, suppress=("<BOT>",), row_length=512),
        train=TrainConfig(
            steps=4, batch_examples=4, row_length=320, microbatch_rows=2, save_every=2, validate_every=2
        ),
        reason=ReasonConfig(
            max_steps=7, max_step_tokens=32, max_rationale_tokens=32, suppress=("<BOT>",), block=8
        ),
        rationalysts={"rationalyst": Rationalyst(), "untuned": Rationalyst(train=False)},
        strategies={"random": Run("random"), "implicit": Run("implicit", rationalyst="rationalyst")},
        ablations={"untuned": Run("implicit", rationalyst="untuned"), "greedy": Run("greedy", full=True)},
    )


def conclusions(summary: dict) -> dict:
    return {key: value for key, value in summary.items() if key != "seconds"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    return run_dir, run(small(run_dir), full=False, console=CONSOLE)


def test_an_experiment_ends_with_a_summary_of_every_stage(finished):
    run_dir, summary = finished
    assert summary == json.loads((run_dir / "summary.json").read_text())
    assert set(summary["strategies"]) == {"random", "implicit"} and set(summary["ablations"]) == {"untuned"}
    implicit = summary["strategies"]["implicit"]
    assert implicit["low"] <= implicit["accuracy"] <= implicit["high"] and implicit["n"] == 16
    assert 0 <= implicit["p_vs_random"] <= 1 and implicit["p_vs_likelihood"] is None
    for result in summary["strategies"].values():
        assert {"accuracy", "low", "high", "n", "p_vs_random", "p_vs_likelihood"} <= set(result)
    assert summary["mining"]["documents"] == 32 and sum(summary["mining"]["reasons"].values()) > 0
    assert set(summary["seconds"]) == {
        "data",
        "annotate",
        "filter",
        "train rationalyst",
        "reason random",
        "reason implicit",
        "reason untuned",
    }
    for picture in ("accuracy.png", "train/rationalyst/loss.png"):
        assert (run_dir / picture).read_bytes().startswith(b"\x89PNG")


class Killed(Exception):
    """Stands for the end of the process: nothing of the pipeline catches it."""


@pytest.mark.parametrize("calls", [1, 3, 6, 12])
def test_a_run_that_was_cut_off_ends_like_one_that_was_not(finished, tmp_path, monkeypatch, calls):
    left = calls
    generate = Engine.generate

    def dying(self, requests):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return generate(self, requests)

    monkeypatch.setattr(Engine, "generate", dying)
    with pytest.raises(Killed):
        run(small(tmp_path), full=False, console=CONSOLE)
    monkeypatch.undo()
    assert conclusions(run(small(tmp_path), full=False, console=CONSOLE)) == conclusions(finished[1])
    for file in ("mine/annotations.jsonl", "reason/implicit.jsonl"):
        assert (tmp_path / file).read_bytes() == (finished[0] / file).read_bytes()


def test_a_full_run_continues_a_short_one(finished):
    run_dir, summary = finished
    full = run(small(run_dir), full=True, console=CONSOLE)
    assert set(full["ablations"]) == {"untuned", "greedy"}
    assert full["strategies"]["random"] == summary["strategies"]["random"]


def test_a_run_directory_of_another_config_is_refused_naming_what_differs(finished):
    run_dir, _ = finished
    other = replace(small(run_dir), filter=replace(small(run_dir).filter, tau=0.7))
    with pytest.raises(ValueError, match=r"made with another config: filter.tau 0.1 -> 0.7"):
        run(other, full=False, console=CONSOLE)


def test_a_run_that_wants_a_rationalyst_nobody_makes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run 'x' wants rationalyst 'y', there are rationalyst, untuned"):
        replace(small(tmp_path), ablations={"x": Run("implicit", rationalyst="y")})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Run("best"), "run 'x' wants strategy 'best' of greedy"),
        (Run("random", questions="easy"), "run 'x' wants questions 'easy' of test"),
        (Run("implicit"), r"run 'x' \(implicit\) names no rationalyst"),
    ],
)
def test_a_run_that_cannot_be_done_is_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        run(replace(small(tmp_path / "run"), ablations={"x": wrong}), full=True, console=CONSOLE)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["data", "annotate", "filter", "train rationalyst", "reason random"])
def test_the_demo_killed_with_kill_9_after_each_stage_began_ends_the_same(finished, tmp_path, stage):
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_pipeline import *; "
        "run(small(Path(sys.argv[1])), full=False, console=CONSOLE)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    before = {"data": None, "annotate": "data", "filter": "annotate", "train rationalyst": "filter"}
    marker = before.get(stage, "train_rationalyst")
    process = subprocess.Popen(command)
    while marker and not (tmp_path / "stages" / f"{marker}.json").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(1.0)  # into the stage
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "summary.json").exists()
    subprocess.run(command, check=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert conclusions(summary) == conclusions(finished[1])
