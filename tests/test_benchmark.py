"""A benchmark: tasks × checkpoints × approaches, killed and resumed to the same bytes."""

import io
import json
import multiprocessing
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from finished_run import unpacked
from random_model import random_llama
from rich.console import Console

import rationalyst_jax.pipeline.benchmark
from rationalyst_jax.cli.main import main
from rationalyst_jax.evaluate.statistics import holm
from rationalyst_jax.files.parts import HostShard, OthersAtWork
from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.weights.hf import copy_tokenizer, save_llama
from rationalyst_jax.pipeline.approach import Approach
from rationalyst_jax.pipeline.benchmark import run
from rationalyst_jax.pipeline.benchmark_config import (
    BenchmarkConfig,
    Contestant,
    TaskQuestions,
)
from rationalyst_jax.pipeline.reason import ReasonSummary
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.traces import Trace, Usage, mean_ledger
from rationalyst_jax.tasks.sources import read_questions
from rationalyst_jax.world.corpus import questions

APPROACHES = {
    "random": Approach("random"),
    "implicit": Approach("implicit"),
    "sc at implicit's FLOPs": Approach("self_consistency", budget_of="implicit"),
}
SUPPRESS = ("<BOT>", "<|copy|>")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for name in ("test", "longer"):
        write_rows(folder / f"{name}.jsonl", questions(0, 4, name))
    return folder


def config(sets: Path, run_dir: Path, **changes: Any) -> BenchmarkConfig:
    options: dict[str, Any] = {
        "run_dir": str(run_dir),
        "prompts": "world",
        "tasks": {"gsm8k": TaskQuestions(str(sets / "test.jsonl"))},
        "checkpoints": {"alone": Contestant("world"), "guided": Contestant("world", "world")},
        "approaches": APPROACHES,
        "reason": ReasonConfig(
            candidates=2, max_steps=4, max_step_tokens=32, max_rationale_tokens=16, suppress=SUPPRESS
        ),
    }
    return BenchmarkConfig(**options | changes)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=160)


def traces(run_dir: Path) -> dict[str, list[dict]]:
    """All traces of a run, without the seconds they took."""
    found = {}
    for path in sorted((run_dir / "traces").rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(run_dir))] = [row | {"seconds": 0} for row in rows]
    return found


@pytest.fixture(scope="module")
def whole(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, run(config(sets, path), only=None, console=quiet())


def test_every_cell_is_filled_and_compared_with_its_own_checkpoint(whole: tuple[Path, dict]):
    path, summary = whole
    task = summary["tasks"]["gsm8k"]
    assert list(task["cells"]) == [  # without a rationalyst, what needs one is left out
        "alone: random",
        "guided: random",
        "guided: implicit",
        "guided: sc at implicit's FLOPs",
    ]
    assert task["paper"] == {"base": 77.6, "rationalyst": 81.6, "shots": 9}
    for name, cell in task["cells"].items():
        for reading in ("strict", "flexible"):
            assert cell[reading]["n"] == 4 and 0 <= cell[reading]["low"] < cell[reading]["high"] <= 1
        assert set(cell["versus"]) == (set() if name.endswith("random") else {"random"})
        assert cell["ledger"]["flops"] > 0
    compared = [v for cell in task["cells"].values() for v in cell["versus"].values()]
    assert len(compared) == 2 and all(v["p_holm"] >= v["p"] for v in compared)
    assert (path / "accuracy.png").stat().st_size > 1000
    assert json.loads((path / "summary.json").read_text()) == summary


def test_a_benchmark_ends_with_a_page_on_which_every_cell_is_graded_as_in_its_summary(
    whole: tuple[Path, dict],
):
    path, summary = whole
    [of_task] = unpacked(path / "report.html")["main"]["sets"]
    cells = summary["tasks"]["gsm8k"]["cells"]
    assert {cell["name"]: cell["samples"] for cell in of_task["runs"]} == dict.fromkeys(
        cells, summary["samples"]
    )
    for cell in of_task["runs"]:
        strict = cells[cell["name"]]["strict"]
        right = sum(row[2] == "right" for row in cell["rows"])
        assert (right, len(cell["rows"])) == (round(strict["accuracy"] * strict["n"]), strict["n"])


def test_a_run_that_was_killed_twice_ends_with_the_same_traces(
    whole: tuple[Path, dict], sets: Path, tmp_path: Path
):
    path, summary = whole
    again = config(sets, tmp_path / "again")
    kill_twice(again, (1, 3))
    assert run(again, only=None, console=quiet()) == summary
    assert traces(Path(again.run_dir)) == traces(path)


def test_two_shards_end_with_the_traces_and_the_summary_of_one_process(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At once, because for a budget each waits for what the other one writes."""
    small = ReasonConfig(candidates=2, max_steps=2, max_step_tokens=8, max_rationale_tokens=8, block=2)
    options = {"checkpoints": {"guided": Contestant("world", "world")}, "reason": small}
    summary = run(config(sets, tmp_path / "alone", **options), only=None, console=quiet())
    monkeypatch.setattr("rationalyst_jax.files.parts._SECONDS_BETWEEN_LOOKS", 0.05)
    two = config(sets, tmp_path / "two", **options)

    def of_shard(number: int) -> dict[str, Any] | str:
        try:
            return run(two, only=None, shard=HostShard(number, 2), console=quiet())
        except OthersAtWork as rest:
            return str(rest)

    with ThreadPoolExecutor(2) as shards:
        ended = sorted(shards.map(of_shard, range(2), timeout=600), key=str)
    assert re.match("shard ./2 is done, ", str(ended[0])) and ended[1] == summary
    assert traces(tmp_path / "two") == traces(tmp_path / "alone")
    assert not [*(tmp_path / "two").rglob("*.parts")]
    assert of_shard(1) == summary  # a run that is finished

    with pytest.raises(ValueError, match="made with other settings: limit None -> 2"):
        run(replace(two, limit=2), only=None, shard=HostShard(0, 2), console=quiet())


def kill_twice(config: BenchmarkConfig, files: tuple[int, int]) -> None:
    """Runs a benchmark and kills it as soon as so many files of traces are there, amid the last of them."""
    for wanted in files:
        process = multiprocessing.get_context("spawn").Process(target=_run, args=(config,))
        process.start()
        deadline = time.monotonic() + 1200
        while len([*Path(config.run_dir).rglob("traces/**/*.jsonl")]) < wanted:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.05)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def _run(config: BenchmarkConfig) -> None:
    run(config, only=None, console=quiet())


REAL = {
    "gsm8k": "gsm8k/test.jsonl",
    "math500": "math/math500.jsonl",
    "commonsense_qa": "ecqa/cqa_dev.jsonl",
    "hellaswag": "hellaswag/val_1000.jsonl",
    "proofwriter": "proofwriter/logic_llm_test.json",
    "arc": "arc/test.jsonl",
    "mmlu_pro": "mmlu_pro/test.parquet",
}


@pytest.mark.slow
def test_every_cell_of_the_seven_tasks_is_filled_from_real_questions_though_killed(shared, tmp_path):
    tiny = tmp_path / "tiny"
    shape = LlamaConfig(128256, 16, 16, 2, 2, 1, 8, max_position_embeddings=8192, eos_token_id=128001)
    save_llama(random_llama(shape), tiny)
    copy_tokenizer(shared / "llama3_tokenizer", tiny)
    whole = BenchmarkConfig(
        run_dir=str(tmp_path / "whole"),
        prompts="llama3",
        tasks={name: TaskQuestions(str(shared / file)) for name, file in REAL.items()},
        checkpoints={"tiny": Contestant(str(tiny), str(tiny))},
        approaches=APPROACHES,
        limit=20,
        reason=ReasonConfig(max_steps=2, max_step_tokens=10, max_rationale_tokens=6),
        engine=EngineConfig(max_sequences=16),
    )
    summary = run(whole, only=None, console=quiet())
    cells = [cell for task in summary["tasks"].values() for cell in task["cells"].values()]
    assert len(cells) == 21
    assert all(cell["strict"]["n"] == 20 and cell["strict"]["high"] > 0.1 for cell in cells)
    killed = replace(whole, run_dir=str(tmp_path / "killed"))
    kill_twice(killed, (4, 13))
    run(killed, only=None, console=quiet())
    one, other = (Path(config.run_dir) for config in (whole, killed))
    assert (one / "summary.json").read_bytes() == (other / "summary.json").read_bytes()
    assert traces(one) == traces(other)


def stubbed(monkeypatch: pytest.MonkeyPatch, sets: Path) -> list[Path]:
    """Questions are answered at once, by their places and the strategy; returns the files written."""
    written: list[Path] = []

    def reason(questions, task, cast, models, prompts, config, out, *, limit=None, progress=None, **options):
        asked = read_questions(task, questions)[:limit]
        out.parent.mkdir(parents=True, exist_ok=True)
        tokens = {"agent": Usage(flops=100 * config.candidates)}
        right = [(i + len(config.strategy) + config.seed) % 3 > 0 for i in range(len(asked))]
        traces = [
            Trace(question.id, config.strategy, question.gold if so else None, "end", (), (), tokens, 0.0)
            for question, so in zip(asked, right, strict=True)
        ]
        write_rows(out, [asdict(trace) for trace in traces])
        written.append(out)
        return ReasonSummary(len(asked), len(asked), 1.0, {}, mean_ledger(traces))

    monkeypatch.setattr(rationalyst_jax.pipeline.benchmark, "reason", reason)
    return written


def many(sets: Path, run_dir: Path, **changes: Any) -> BenchmarkConfig:
    """Two tasks, two baselines, two samples, shots that are drawn."""
    rows = [{"problem": f"{i} + 1?", "solution": f"\\boxed{{{i + 1}}}", "level": 1} for i in range(6)]
    for name in ("math", "math_shots"):
        if not (sets / f"{name}.jsonl").exists():
            write_rows(sets / f"{name}.jsonl", rows)
    tasks = {
        "gsm8k": TaskQuestions(str(sets / "longer.jsonl")),
        "math": TaskQuestions(str(sets / "math.jsonl"), shots_from=str(sets / "math_shots.jsonl")),
    }
    options: dict[str, Any] = {"tasks": tasks, "baselines": ("random", "implicit"), "samples": 2}
    return config(sets, run_dir, **options | changes)


def test_each_pair_is_once_in_the_family_and_samples_are_no_questions(sets, tmp_path, monkeypatch):
    stubbed(monkeypatch, sets)
    console = Console(file=io.StringIO(), width=200)
    summary = run(many(sets, tmp_path / "run"), only=None, console=console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "GSM8K (4 questions, each 2 times)" in printed and "MATH (6 questions, each 2 times)" in printed
    pairs: dict[tuple, set[tuple[float, float]]] = {}
    for task, rows in summary["tasks"].items():
        for cell in rows["cells"].values():
            for baseline, versus in cell["versus"].items():
                key = (task, cell["checkpoint"], *sorted((cell["approach"], baseline)))
                pairs.setdefault(key, set()).add((versus["p"], versus["p_holm"]))
    assert len(pairs) == 2 * 3  # of each task: three pairs of guided's approaches; alone has one approach
    assert all(len(same) == 1 for same in pairs.values())
    found = [next(iter(same)) for same in pairs.values()]
    assert [adjusted for _, adjusted in found] == pytest.approx(holm([p for p, _ in found]))


@pytest.mark.parametrize("file", ["math.jsonl", "math_shots.jsonl"])
def test_files_that_changed_are_refused_before_anything_else_is_solved(sets, tmp_path, monkeypatch, file):
    written = stubbed(monkeypatch, sets)
    settings = many(sets, tmp_path / "run")
    run(settings, only=["math"], console=quiet())
    done = len(written)
    before = (sets / file).read_bytes()
    changed = [{"problem": "1 + 1?", "solution": "\\boxed{2}", "level": 1}]
    try:
        write_rows(sets / file, changed)
        with pytest.raises(ValueError, match=f"{file}: has changed since"):
            run(settings, only=["gsm8k"], console=quiet())
    finally:
        (sets / file).write_bytes(before)
    assert len(written) == done
    run(settings, only=["gsm8k"], console=quiet())
    assert len(written) > done


def test_an_endpoint_has_no_budget_that_another_could_have(sets: Path, tmp_path: Path):
    far = {"far": Contestant("http://localhost:1/v1", "world")}
    with pytest.raises(
        ValueError, match="wants the FLOPs of 'implicit', which an endpoint, as checkpoint 'far'"
    ):
        run(config(sets, tmp_path / "run", checkpoints=far), only=None, console=quiet())
    assert not (tmp_path / "run").exists()


def test_cells_that_would_share_their_files_are_refused(sets: Path, tmp_path: Path):
    names = {"llama": Contestant("world"), "llama: tuned": Contestant("world")}
    approaches = {"random": Approach("random"), "tuned: random": Approach("greedy")}
    with pytest.raises(ValueError, match="would share their files"):
        run(
            config(sets, tmp_path / "run", checkpoints=names, approaches=approaches),
            only=None,
            console=quiet(),
        )


def test_questions_that_changed_since_are_refused(whole: tuple[Path, dict], sets: Path, tmp_path: Path):
    path, _ = whole
    other = {"gsm8k": TaskQuestions(str(sets / "longer.jsonl"))}
    with pytest.raises(ValueError, match=r"longer\.jsonl: has changed since"):
        run(config(sets, path, tasks=other), only=None, console=quiet())
    with pytest.raises(ValueError, match="made with other settings: limit None -> 2"):
        run(config(sets, path, limit=2), only=None, console=quiet())
    with pytest.raises(ValueError, match="task 'arc' is not among gsm8k"):
        run(config(sets, tmp_path / "new"), only=["arc"], console=quiet())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"approaches": {}}, "approaches names nothing"),
        ({"baselines": ("greedy",)}, "baseline 'greedy' is no approach: random"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"limit": 0}, "limit must be at least 1"),
        (
            {"approaches": {"random": Approach("random"), "sc": Approach("self_consistency", budget_of="x")}},
            "approach 'sc': wants the budget of 'x'; on the same questions there are before it: random",
        ),
        (
            {"approaches": {"random": Approach("random"), "g": Approach("greedy", budget_of="random")}},
            "approach 'g': greedy has one candidate at any budget",
        ),
        ({"checkpoints": dict.fromkeys(("a/b", "a:b"), Contestant("world"))}, "would share their files"),
    ],
)
def test_a_config_that_cannot_be_done_is_one_line(changes: dict, said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        config(tmp_path, tmp_path / "run", **changes)


def test_the_worlds_config_is_run_by_a_command(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    models = '{"world": {"agent": "world", "rationalyst": "world"}}'
    options = f"--tasks.gsm8k.questions {sets / 'test.jsonl'} --run_dir {tmp_path / 'run'} --limit 1"
    small = "--reason.max_steps 2 --reason.max_step_tokens 8 --reason.max_rationale_tokens 8"
    command = f"benchmark --config world-benchmark {options} {small} --checkpoints".split()
    assert main([*command, models]) == 0
    cells = json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"]["gsm8k"]["cells"]
    assert len(cells) == 5
    assert "GSM8K" in capsys.readouterr().out


def test_an_unknown_strategy_and_task_are_found_before_anything_is_written(sets: Path, tmp_path: Path):
    path = tmp_path / "run"
    wrong = {"random": Approach("rnadom")}
    with pytest.raises(ValueError, match="approach 'random': reason: no strategy 'rnadom'"):
        run(config(sets, path, approaches=wrong), only=None, console=quiet())
    with pytest.raises(ValueError, match="unknown task 'gsm9k'"):
        run(config(sets, path, tasks={"gsm9k": TaskQuestions("x")}), only=None, console=quiet())
    assert not path.exists()
