"""The whole experiment, small: every stage runs, a killed run ends as an uninterrupted one."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finished_run import unpacked
from rich.console import Console

from rationalyst_jax.files.settings import differences
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.mine.documents import read_documents
from rationalyst_jax.mine.store import read_filtered, read_provenance
from rationalyst_jax.pipeline import experiment
from rationalyst_jax.pipeline.config import ExperimentConfig, Rationalyst, Run, WorldData
from rationalyst_jax.pipeline.experiment import run
from rationalyst_jax.pipeline.model_card import model_cards
from rationalyst_jax.pipeline.models import Models
from rationalyst_jax.pipeline.run_dir import RunDir
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.report.style import percent
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.world.checkpoint import checkpoint_path

CONSOLE = Console(quiet=True)


def small(run_dir: Path) -> ExperimentConfig:
    return ExperimentConfig(
        run_dir=str(run_dir),
        model="world",
        prompts="world",
        world=WorldData(documents=24, questions=8),
        engine=EngineConfig(max_sequences=24),
        annotate=AnnotateConfig(block=16, length_margin=80),
        filter=FilterConfig(tau=0.1, suppress=("<BOT>",), row_length=512, block=8),
        train=TrainConfig(
            steps=6, batch_examples=4, row_length=320, microbatch_rows=1, save_every=2, validate_every=2
        ),
        reason=ReasonConfig(
            max_steps=7, max_step_tokens=32, max_rationale_tokens=32, suppress=("<BOT>",), block=4
        ),
        rationalysts={"rationalyst": Rationalyst(), "untuned": Rationalyst(train=False)},
        strategies={"random": Run("random"), "implicit": Run("implicit", rationalyst="rationalyst")},
        ablations={
            "untuned": Run("implicit", rationalyst="untuned"),
            "greedy": Run("greedy", full=True),
            "as dear": Run("self_consistency", candidates=1, budget_of="implicit", full=True),
        },
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
    assert implicit["low"] <= implicit["accuracy"] <= implicit["high"] and implicit["n"] == 8
    assert 0 <= implicit["vs_random"]["p"] <= 1 and implicit["vs_likelihood"] is None
    for result in summary["strategies"].values():
        assert {"accuracy", "low", "high", "n", "vs_random", "vs_likelihood", "ledger"} <= set(result)
    page = unpacked(run_dir / "report.html")
    for of_run in page["main"]["sets"][0]["runs"]:
        result = {**summary["strategies"], **summary["ablations"]}[of_run["name"]]
        assert sum(row[2] == "right" for row in of_run["rows"]) == round(8 * result["accuracy"])
    assert dict(page["main"]["funnels"][0]["bars"])["documents"] == summary["mining"][0]["documents"] == 24
    [mined] = summary["mining"]
    assert mined["documents"] == 24 and sum(mined["reasons"].values()) > 0
    assert set(summary["seconds"]) == {
        "data",
        "mine",
        "filter",
        "train rationalyst",
        "reason random",
        "reason implicit",
        "reason untuned",
    }
    for picture in ("accuracy.png", "train/rationalyst/loss.png"):
        assert (run_dir / picture).read_bytes().startswith(b"\x89PNG")


def test_its_page_opens_in_a_browser_with_its_figures_and_every_question(finished, opened):
    _, summary = finished
    page = opened()
    for name, result in (summary["strategies"] | summary["ablations"]).items():
        row = page.locator("tbody tr", has=page.get_by_role("cell", name=name, exact=True)).first
        assert percent(result["accuracy"], result["low"], result["high"]) in row.inner_text()
    page.get_by_role("link", name="Questions").click()
    page.wait_for_selector("[role=status]")
    assert page.locator("[role=status]").inner_text() == "8 questions of 8"
    page.locator(".row").first.click()
    page.wait_for_selector("article ol.steps")
    page.get_by_role("link", name="Mined rationales").click()
    page.wait_for_selector("[role=status]")
    assert page.locator("[role=status]").inner_text() == "24 documents of 24"


def test_the_trained_model_gets_a_card_of_what_its_stages_recorded(finished):
    run_dir, summary = finished
    [path] = model_cards(run_dir, licenses={})
    card = path.read_text()
    recorded = json.loads((run_dir / "train" / "rationalyst" / "train.json").read_text())
    [source] = recorded["sources"]
    kept = summary["training"]["rationalyst"]["rationales"]
    assert source["name"] == "world" and source["rationales"] == kept and source["tau"] == [0.1]
    assert f"| world | {source['documents']} | {kept} | 0.1 | gain ({kept}) |" in card
    assert recorded["wrote"] == recorded["judged"] != [] and recorded["counts"]["steps"] == 6
    assert "**implicit**" in card and "untuned" not in card and "not recorded" not in card
    assert path.parent == run_dir / "train" / "rationalyst" / "hf"


def test_the_tuned_model_mines_a_second_round_on_documents_of_its_own(tmp_path, capsys):
    config = replace(
        small(tmp_path / "run"),
        annotate=AnnotateConfig(method="insert", places="line", max_rationale_tokens=16, block=16),
        filter=replace(small(tmp_path).filter, tau=-5.0),
        rationalysts={"first": Rationalyst(rounds=1), "both": Rationalyst(keep="all")},
        rounds=("first",),
        strategies={"random": Run("random"), "implicit": Run("implicit", rationalyst="both")},
        ablations={},
    )
    summary = run(config, full=False, console=Console())
    first, second = (read_documents(tmp_path / "run" / "data" / f"round-{n}.jsonl") for n in (1, 2))
    assert [*first, *second] == read_documents(tmp_path / "run" / "data" / "documents.jsonl")
    assert len(first) == len(second) == 12
    of_rounds = [tmp_path / "run" / "mine" / f"round-{n}" for n in (1, 2)]
    found = [read_filtered(folder / "filtered.parquet") for folder in of_rounds]
    for documents, triples in zip((first, second), found, strict=True):
        assert {triple.document_id for triple in triples} <= {document.id for document in documents}
    wrote = [read_provenance(folder / "triples.parquet") for folder in of_rounds]
    assert [one.model for one in wrote] == ["world", str(tmp_path / "run" / "train" / "first" / "hf")]
    assert [one.config["base"] for one in wrote] == [None, "world"]
    prompts = [one.config["annotate"]["prompt"] for one in wrote]  # pyright: ignore
    assert prompts == ["insert", "rationale"]
    judges = [read_provenance(folder / "filtered.parquet").config["filter_model"] for folder in of_rounds]
    assert judges == ["world", "world"]

    # Each learns from its rounds.
    kept = [sum(triple.kept for triple in of_round) for of_round in found]
    assert summary["training"]["first"]["rationales"] == kept[0]
    assert summary["training"]["both"]["rationales"] == sum(map(len, found))
    assert [of_round["kept"] for of_round in summary["mining"]] == kept
    assert all(of_round["flops"] > 0 and of_round["generated"] > 0 for of_round in summary["mining"])
    assert "rounds of mining" in capsys.readouterr().out


def test_every_rationalyst_learns_from_a_file_of_its_own():
    names = ["tau=0.05", "tau=0.2", "tau=0", "round-1", "filtered", "learned"]
    for rounds in ((), ("untuned",)):
        its: Any = SimpleNamespace(config=SimpleNamespace(rounds=rounds), path=Path("run"))
        paths = [experiment.Experiment.rationales_path(its, name) for name in names]
        assert len({*paths}) == len(names)
        assert not {*paths} & {Path("run/mine/round-1"), Path("run/mine/triples.parquet")}


ROUNDS = {
    "round 2 wants rationalyst 'nobody'": {"rounds": ("nobody",)},
    "mined by rationalyst 'both', which is trained on that round: its rounds must be at most 1": {
        "rounds": ("both",)
    },
    "mines round 2 by insertion: annotate.method must be insert, got 'copy'": {
        "rounds": ("first",),
        "annotate": AnnotateConfig(),
    },
    "rationalyst 'first': rounds must be between 1 and 1, the rounds of mining, got 2": {
        "rationalysts": {"first": Rationalyst(rounds=2)}
    },
    "rationalyst 'first' is not trained, its rounds changes nothing": {
        "rationalysts": {"first": Rationalyst(rounds=1, train=False)}
    },
}


@pytest.mark.parametrize("told", ROUNDS)
def test_rounds_that_cannot_be_are_refused(tmp_path, told):
    good: dict[str, Any] = {
        "rationalysts": {"first": Rationalyst(rounds=1), "both": Rationalyst()},
        "annotate": AnnotateConfig(method="insert"),
        "strategies": {},
        "ablations": {},
    }
    with pytest.raises(ValueError, match=re.escape(told)):
        replace(small(tmp_path), **(good | ROUNDS[told]))


def test_fewer_documents_than_rounds_are_refused(tmp_path):
    config = replace(
        small(tmp_path / "run"), world=WorldData(documents=2, questions=2), rounds=["untuned"] * 2
    )
    with pytest.raises(ValueError, match="2 documents are too few for 3 rounds"):
        run(config, full=False, console=CONSOLE)


def lines(path: Path) -> list[dict]:
    """The rows of a file, without the seconds that a trace says."""
    return [{**row, "seconds": None} for row in map(json.loads, path.read_text().splitlines())]


class Killed(Exception):
    """Stands for the end of the process: nothing of the pipeline catches it."""


@pytest.mark.slow  # test_a_run_killed_with_kill_9 is the fast one
@pytest.mark.parametrize("calls", [1, 40, 90, 200])
def test_a_run_that_was_cut_off_ends_like_one_that_was_not(finished, tmp_path, monkeypatch, calls):
    left = calls
    submit = Engine.submit

    def dying(self, request):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return submit(self, request)

    monkeypatch.setattr(Engine, "submit", dying)
    with pytest.raises(Killed):
        run(small(tmp_path), full=False, console=CONSOLE)
    monkeypatch.undo()
    assert conclusions(run(small(tmp_path), full=False, console=CONSOLE)) == conclusions(finished[1])
    for file in ("mine/annotations.jsonl", "reason/implicit.jsonl"):
        assert lines(tmp_path / file) == lines(finished[0] / file)


def test_a_full_run_continues_a_short_one(finished):
    run_dir, summary = finished
    full = run(small(run_dir), full=True, console=CONSOLE)
    assert set(full["ablations"]) == {"untuned", "greedy", "as dear"}
    assert full["strategies"]["random"] == summary["strategies"]["random"]
    [dear] = [json.loads(path.read_text()) for path in (run_dir / "reason").glob("as_dear*.config.json")]
    pilots = [lines(run_dir / "reason" / "pilot" / f"as_dear, {n} candidates.jsonl") for n in (1, 2)]
    budget, took = (
        full[kind][name]["ledger"]["flops"]
        for kind, name in (("strategies", "implicit"), ("ablations", "as dear"))
    )
    assert dear["candidates"] > 1
    assert [{len(trace["samples"]) for trace in traces} for traces in pilots] == [{1}, {2}]
    assert 0.75 < took / budget < 1.25


def test_a_run_directory_of_another_config_is_refused_naming_what_differs(finished):
    run_dir, _ = finished
    other = replace(small(run_dir), filter=replace(small(run_dir).filter, tau=0.7))
    with pytest.raises(ValueError, match=r"made with other settings: filter.tau 0.1 -> 0.7"):
        run(other, full=False, console=CONSOLE)


@pytest.mark.parametrize(
    ("budget_of", "questions"), [("x", "test"), ("greedy", "test"), ("random", "longer")]
)
def test_a_budget_is_that_of_an_earlier_run_on_the_same_questions(tmp_path, budget_of, questions):
    x = Run("best_of_n", budget_of=budget_of, questions=questions)
    with pytest.raises(ValueError, match=f"run 'x': wants the budget of '{budget_of}'; on the same"):
        replace(small(tmp_path), ablations={"greedy": Run("greedy", full=True), "x": x})
    with pytest.raises(ValueError, match="run 'x': greedy has one candidate at any budget"):
        replace(small(tmp_path), ablations={"x": Run("greedy", budget_of="random")})


def test_a_run_that_wants_a_rationalyst_nobody_makes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run 'x' wants rationalyst 'y', there are rationalyst, untuned"):
        replace(small(tmp_path), ablations={"x": Run("implicit", rationalyst="y")})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Run("best"), "run 'x': reason: no strategy 'best', only greedy"),
        (Run("random", questions="easy"), "run 'x' wants questions 'easy' of test"),
        (Run("random", candidates=0), "reason: candidates must be at least 1, got 0"),
        (Run("implicit"), "run 'x': reason: strategy 'implicit' by implicit needs a rationalyst"),
    ],
)
def test_a_run_that_cannot_be_done_is_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        run(replace(small(tmp_path / "run"), ablations={"x": wrong}), full=True, console=CONSOLE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ablations": {"random": Run("greedy")}}, "'random' and 'random' would share their files"),
        ({"ablations": {"a b": Run("greedy"), "a/b": Run("random")}}, "'a b' and 'a/b' would share"),
        ({"filter": FilterConfig(suppress=("a b",))}, "suppress: 'a b' is 3 tokens"),
        ({"prompts": "wurld"}, "no prompts named 'wurld'"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(replace(small(tmp_path / "run"), **changes), full=True, console=CONSOLE)
    assert not (tmp_path / "run").exists()


def test_a_stage_may_not_have_a_seed_of_its_own(tmp_path):
    config = small(tmp_path)
    with pytest.raises(ValueError, match=r"experiment: train.seed is 3, but the whole has seed 0"):
        replace(config, train=replace(config.train, seed=3))
    assert replace(config, seed=7).reason.seed == 7


def test_a_run_directory_and_its_model_may_be_moved(finished, tmp_path):
    moved, base = tmp_path / "moved", tmp_path / "base"
    shutil.copytree(finished[0], moved)
    shutil.copytree(checkpoint_path("world"), base)
    config = replace(small(moved), model=str(base))
    assert conclusions(run(config, full=False, console=CONSOLE)) == conclusions(finished[1])
    template = base / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ValueError, match=r"made with other settings: model '\w{16}' -> '\w{16}'"):
        run(config, full=False, console=CONSOLE)


def test_changed_input_files_are_other_settings(tmp_path):
    documents, questions = tmp_path / "d.jsonl", tmp_path / "q.jsonl"
    documents.write_text('{"text": "one"}\n')
    questions.write_text('{"question": "?", "answer": "#### 1"}\n')
    config = replace(
        small(tmp_path), world=None, documents=str(documents), questions={"test": str(questions)}
    )
    before = experiment.Experiment(config, Models(config.engine), CONSOLE).settings()
    questions.write_text('{"question": "??", "answer": "#### 1"}\n')
    after = experiment.Experiment(config, Models(config.engine), CONSOLE).settings()
    assert [line.split()[0] for line in differences(before, after)] == ["questions.test"]


def test_other_versions_of_packages_are_told(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    versions = tmp_path / "run" / "versions.json"
    versions.write_text(json.dumps({**json.loads(versions.read_text()), "jax": "0.0.1"}))
    said = io.StringIO()
    console = Console(file=said, width=200)
    config = small(tmp_path)
    settings = experiment.Experiment(config, Models(config.engine), CONSOLE).settings()
    with RunDir(tmp_path / "run", settings, console):
        pass
    assert "was begun with other versions: jax '0.0.1' -> " in said.getvalue()


# A stage, what it and its marker leave behind, and where in it the process dies (at which call of which
# function). Half of what `append_rows` was given is on the disk by then.
KILLS = {
    "data": (["data", "stages/data.json"], "pipeline.experiment.write_rows", 2),
    "mine": (["mine/annotations.jsonl", "stages/mine.json"], "mine.annotate.append_rows", 20),
    "filter": (["mine/filtered.parquet*", "stages/filter.json"], "mine.likelihood_filter.append_rows", 3),
    "train": (["train", "stages/train_*"], "train.loop._due", 7),
    "reason": (["reason", "stages/reason_*"], "reason.traces.append_rows", 4),
    "evaluate": (["summary.json"], "pipeline.experiment.evaluate", 1),
}
DYING = """
import importlib, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_pipeline import CONSOLE, run, small
module, name = ("rationalyst_jax." + sys.argv[3]).rsplit(".", 1)
module = importlib.import_module(module)
real, left = getattr(module, name), int(sys.argv[4])

def dying(*arguments, **options):
    global left
    left -= 1
    if left == 0:
        if name == "append_rows":
            path, rows = arguments
            before = path.read_bytes()
            real(path, rows)
            path.write_bytes(before + path.read_bytes()[len(before):][:-40])
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)

setattr(module, name, dying)
run(small(Path(sys.argv[1])), full=False, console=CONSOLE)
"""


SLOW_KILLS = [name if name == "reason" else pytest.param(name, marks=pytest.mark.slow) for name in KILLS]


@pytest.mark.parametrize("stage", SLOW_KILLS)
def test_a_run_killed_with_kill_9_in_a_stage_ends_the_same(finished, tmp_path, stage):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    for later in list(KILLS)[list(KILLS).index(stage) :]:  # as if the run had just come to this stage
        for output in (file for pattern in KILLS[later][0] for file in run_dir.glob(pattern)):
            shutil.rmtree(output) if output.is_dir() else output.unlink()
    _, where, calls = KILLS[stage]
    tests = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", DYING, str(run_dir), tests, where, str(calls)])
    assert killed.returncode == -signal.SIGKILL and not (run_dir / "summary.json").exists()
    assert conclusions(run(small(run_dir), full=False, console=CONSOLE)) == conclusions(finished[1])
    for file in ("mine/annotations.jsonl", "reason/implicit.jsonl"):
        assert lines(run_dir / file) == lines(finished[0] / file)
    for file in ("mine/filtered.parquet", "mine/rationalyst.parquet"):
        assert (run_dir / file).read_bytes() == (finished[0] / file).read_bytes()


# The demo itself, as a user starts it.


def rationalyst_demo(run_dir: Path) -> list[str]:
    command = f"-m rationalyst_jax.cli.main demo --run_dir {run_dir}"
    return [sys.executable, *command.split()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("demo") / "run"
    subprocess.run(rationalyst_demo(run_dir), check=True)
    return run_dir


@pytest.mark.slow
def test_the_demo_shows_what_it_is_for(demo):
    strategies = json.loads((demo / "summary.json").read_text())["strategies"]
    implicit = strategies["implicit"]
    assert implicit["n"] >= 500
    assert (
        implicit["accuracy"] - strategies["random"]["accuracy"] >= 0.10 and implicit["vs_random"]["p"] < 0.01
    )
    assert (
        implicit["accuracy"] > strategies["likelihood"]["accuracy"] and implicit["vs_likelihood"]["p"] < 0.01
    )


@pytest.mark.slow
def test_the_demos_page_opens_in_a_browser(demo, opened):
    strategies = json.loads((demo / "summary.json").read_text())["strategies"]
    page = opened("#view=questions&run=implicit&vs=likelihood", demo / "report.html")
    page.wait_for_selector(".row")
    assert page.locator("[role=status]").inner_text() == "500 questions of 500"
    right = round(500 * strategies["implicit"]["accuracy"])
    page.get_by_role("combobox", name="graded", exact=True).select_option("right")
    page.wait_for_function(
        "n => document.querySelector('[role=status]').innerText.startsWith(n)", arg=f"{right} questions"
    )
    page.locator(".row").first.click()
    page.wait_for_selector("article ol.steps")


def lines_in(pattern: str, count: int) -> Callable[[Path], bool]:
    """Whether some file of a run directory has so many lines."""
    return lambda run_dir: any(file.read_bytes().count(b"\n") >= count for file in run_dir.glob(pattern))


@pytest.mark.slow
def test_the_demo_killed_with_kill_9_in_every_stage_ends_the_same(demo, tmp_path):
    run_dir = tmp_path / "run"
    signs = {
        "data": lambda run_dir: (run_dir / "experiment.config.json").exists(),
        "mine": lines_in("mine/annotations.jsonl", 128),
        "filter": lines_in("mine/filtered.parquet.scores.jsonl", 256),
        "train": lines_in("train/rationalyst/metrics.jsonl", 30),
        "reason": lines_in("reason/implicit.jsonl", 256),
        "evaluate": lambda run_dir: (run_dir / "stages" / "reason_untuned_RATIONALYST.json").exists(),
    }
    for stage, sign in signs.items():
        process = subprocess.Popen(rationalyst_demo(run_dir))
        while not sign(run_dir) and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL, stage
        assert not (run_dir / "summary.json").exists(), stage
    subprocess.run(rationalyst_demo(run_dir), check=True)
    ended, uninterrupted = (
        conclusions(json.loads((folder / "summary.json").read_text())) for folder in (run_dir, demo)
    )
    assert ended == uninterrupted
