"""Steps of given solutions: their scores against an independent path, strangers, resuming, the command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_files import rationalyst
from hypothesis import given, settings
from hypothesis import strategies as st

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.trees.likelihood import Pair, score
from rationalyst_jax.lm.weights.tokenizer import marker_ids
from rationalyst_jax.pipeline.locate import locate
from rationalyst_jax.pipeline.models import Known, Models
from rationalyst_jax.prompts.prompt import load_prompts, render
from rationalyst_jax.reason import blocks
from rationalyst_jax.reason import locate as locating
from rationalyst_jax.reason.config import LocateConfig
from rationalyst_jax.reason.locate import strangers
from rationalyst_jax.tasks.process_bench import GivenSolution, read_solutions
from rationalyst_jax.world.errors import step_errors

MARKERS = ("<BOT>", "<|copy|>")
CONFIG = LocateConfig(max_rationale_tokens=16, suppress=MARKERS, block=4)
PROMPTS = load_prompts("world")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def solutions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("solutions") / "errors.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in step_errors(0, 10)))
    return path


@pytest.fixture(scope="module")
def world():
    with Models(EngineConfig(max_sequences=16, pages=512)) as models:
        yield models


@pytest.fixture(scope="module")
def finished(solutions, world, tmp_path_factory) -> Path:
    """What the shipped model says and scores, as RATIONALYST and as scorer."""
    out = tmp_path_factory.mktemp("located") / "located.jsonl"
    locate(solutions, "world", "world", world, PROMPTS, CONFIG, out)
    return out


def logprobs(models, prompt, fields, target, suppress=()):
    """Log-probabilities on another path: one packed tree for each text, no engine and no cache."""
    checkpoint = models.checkpoint("world")
    pair = Pair(*render(checkpoint.tokenizer, PROMPTS[prompt], fields, target=target, close=True))
    ids = marker_ids(checkpoint.tokenizer, suppress)
    [[found]] = score(models.scorer("world", None), [[pair]], row_length=256, suppress=ids).result()
    return found


def decayed_mean(values):
    return np.average(values, weights=0.9 ** np.arange(len(values)))


def test_scores_are_likelihoods_with_without_and_under_anothers_rationale(solutions, finished):
    with Models(EngineConfig(max_sequences=16, pages=512)) as models:
        tokenizer = models.checkpoint("world").tokenizer
        given_solutions = read_solutions(solutions)
        for number in (0, 5):
            solution = given_solutions[number]
            located = rows(finished)[number]["steps"]
            said = rows(finished.with_name("located.jsonl.rationales.jsonl"))[number]["rationales"]
            assert [step["text"] for step in located] == list(solution.steps)
            assert len(said) == len(located) + 1
            for place, step in enumerate(located):
                before = {"preceding": "\n".join([solution.problem, *solution.steps[:place], ""])}
                last = place == len(located) - 1
                text = step["text"] if last else step["text"] + "\n"
                length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
                asked = {
                    "likelihood": ("follow", {}),
                    "implicit": ("follow_guided", {"rationale": said[place]["text"]}),
                    "shuffled": ("follow_guided", {"rationale": step["stranger"]}),
                }
                for name, (prompt, fields) in asked.items():
                    values = logprobs(models, prompt, before | fields, text, MARKERS)[:length]
                    assert step[name] == pytest.approx(decayed_mean(values), abs=2e-4), name
                # The rationale after this step stands before the next one.
                assert step["rationale"] == said[place]["text"]
                assert step["confidence"] == said[place + 1]["confidence"]
                after = {"preceding": "\n".join([solution.problem, *solution.steps[: place + 1], ""])}
                own = said[place + 1]["text"]
                tokens = len(tokenizer(own, add_special_tokens=False)["input_ids"]) + 1  # and <EOT>
                values = logprobs(models, "rationale", after, own)[:tokens]
                assert step["confidence"] == pytest.approx(values.mean(), abs=2e-4)


def test_solutions_that_begin_alike_get_the_same_rationales(solutions, finished):
    """The two solutions of a problem differ from the first wrong step on: rationales are greedy."""
    right, wrong, *_ = rows(finished.with_name("located.jsonl.rationales.jsonl"))
    first_error = read_solutions(solutions)[1].first_error
    assert first_error is not None
    same = first_error + 1
    texts = [[one["text"] for one in row["rationales"]] for row in (right, wrong)]
    assert texts[0][:same] == texts[1][:same]


# ---- Whose rationale stands in ----

one_solution = st.builds(
    lambda number, problem, steps: GivenSolution(str(number), f"problem {problem}", ("x",) * steps, None),
    st.integers(0, 10**6),
    st.integers(0, 4),
    st.integers(1, 6),
)


@settings(max_examples=60)
@given(st.lists(one_solution, min_size=2, max_size=12, unique_by=lambda s: s.id), st.integers(0, 5))
def test_no_solution_gets_a_rationale_of_its_own_problem(solutions, seed):
    if len({solution.problem for solution in solutions}) < 2:
        with pytest.raises(ValueError, match="two or more"):
            strangers(solutions, seed)
        return
    pairs = strangers(solutions, seed)
    for solution, places in zip(solutions, pairs, strict=True):
        assert len(places) == len(solution.steps)
        others = [other for other in solutions if other.problem != solution.problem]
        longest = max(len(other.steps) for other in others)
        for step, (number, place) in enumerate(places):
            assert solutions[number].problem != solution.problem
            assert place == min(step, longest - 1) < len(solutions[number].steps)
    assert strangers(solutions, seed) == pairs


def test_strangers_are_drawn_from_all_that_have_the_step():
    solutions = [GivenSolution(str(i), f"problem {i}", ("x",) * (1 + i % 2), None) for i in range(40)]
    [*firsts] = [places[0][0] for places in strangers(solutions, 0)]
    assert len(set(firsts)) > 20 and firsts != [places[0][0] for places in strangers(solutions, 1)]
    assert {number % 2 for places in strangers(solutions, 0) for number, _ in places[1:]} == {1}


# ---- Going on ----


@pytest.mark.parametrize("appended", [6, 13])
def test_a_killed_run_goes_on_to_the_same_bytes(appended, solutions, finished, tmp_path, world, monkeypatch):
    """It dies while rationales are written (6) or steps are scored (13)."""
    out = tmp_path / "located.jsonl"
    append = blocks.append_rows
    left = iter(range(appended))

    def dying(path, new):
        if next(left, None) is None:
            raise KeyboardInterrupt
        append(path, new)

    monkeypatch.setattr(blocks, "append_rows", dying)
    with pytest.raises(KeyboardInterrupt):
        locate(solutions, "world", "world", world, PROMPTS, CONFIG, out)
    monkeypatch.setattr(blocks, "append_rows", append)
    written = tmp_path.glob("*.jsonl")
    assert sum(path.read_bytes().count(b"\n") for path in written) == appended
    with out.open("ab") as file:
        file.write(b'{"id": "half a r')
    locate(solutions, "world", "world", world, PROMPTS, CONFIG, out)
    for name in ("located.jsonl", "located.jsonl.rationales.jsonl"):
        assert (tmp_path / name).read_bytes() == finished.with_name(name).read_bytes()


DYING = """
import os, signal, sys
from rationalyst_jax.cli.main import main
from rationalyst_jax.reason import blocks
append = blocks.append_rows
left = iter(range(int(sys.argv[1])))
def dying(path, new):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    append(path, new)
blocks.append_rows = dying
main(sys.argv[2:])
"""


@pytest.mark.slow  # test_a_killed_run_goes_on_to_the_same_bytes is the fast one
def test_the_command_killed_with_kill_9_ends_the_same(solutions, tmp_path):
    command = (
        f"locate --config world-locate --solutions {solutions} --rationalyst world --locate.block 4 --out"
    )
    killed = subprocess.run(
        [sys.executable, "-c", DYING, "13", *command.split(), str(tmp_path / "killed.jsonl")], env=os.environ
    )
    assert killed.returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "rationalyst_jax.cli.main",
                *command.split(),
                str(tmp_path / f"{name}.jsonl"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_finished_run_asks_nothing_and_says_the_same(solutions, finished, world, monkeypatch):
    told = []
    before = finished.read_bytes()
    monkeypatch.setattr(blocks, "append_rows", None)
    first = locate(
        solutions, "world", "world", world, PROMPTS, CONFIG, finished, progress=lambda *c: told.append(c)
    )
    assert finished.read_bytes() == before
    assert {(done, total) for done, total, _ in told} == {(10, 20), (20, 20)}
    assert first.quality.solutions == 10 and first.quality.problems == 5
    names = ["likelihood", "judge", "implicit", "gain", "confidence", "shuffled", "shuffled gain"]
    assert list(first.quality.scores) == names
    assert first.verdicts == sum(len(row["steps"]) for row in rows(finished))


def test_a_solution_that_has_changed_is_worked_on_again(solutions, finished, tmp_path, world):
    out = tmp_path / "located.jsonl"
    for name in ("located.jsonl", "located.jsonl.rationales.jsonl"):
        for suffix in ("", ".config.json"):
            (tmp_path / f"{name}{suffix}").write_bytes(finished.with_name(f"{name}{suffix}").read_bytes())
    changed = rows(solutions)
    changed[3]["steps"][0] = "So nobody has 1 + 1 = 2 apples."
    changed[3]["label"] = 0
    path = tmp_path / "changed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    locate(path, "world", "world", world, PROMPTS, CONFIG, out)
    old = {row["id"]: row for row in rows(finished)}
    new = {row["id"]: row for row in rows(out)}
    assert list(new) == list(old)
    name = changed[3]["id"]
    assert new[name]["steps"][0]["text"] == "So nobody has 1 + 1 = 2 apples."
    same = [other for other in old if old[other] == new[other]]
    assert name not in same and same


def test_other_settings_and_other_solutions_are_refused(solutions, finished, tmp_path, world):
    other = LocateConfig(max_rationale_tokens=16, suppress=MARKERS, block=4, decay=0.5)
    with pytest.raises(ValueError, match=r"decay 0\.9 -> 0\.5"):
        locate(solutions, "world", "world", world, PROMPTS, other, finished)
    with pytest.raises(ValueError, match=r"made with other settings: .*rationalyst"):
        locate(solutions, "world", None, world, PROMPTS, CONFIG, finished)
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in step_errors(7, 4)))
    with pytest.raises(ValueError, match="holds other solutions alone"):
        locate(path, "world", "world", world, PROMPTS, CONFIG, finished)


def test_without_a_rationalyst_there_are_likelihood_and_judge_alone(solutions, finished, tmp_path, world):
    out = tmp_path / "located.jsonl"
    summary = locate(solutions, "world", None, world, PROMPTS, CONFIG, out, limit=4)
    assert list(summary.quality.scores) == ["likelihood", "judge"] and not summary.quality.compared
    assert not out.with_name("located.jsonl.rationales.jsonl").exists()
    for alone, guided in zip(rows(out), rows(finished), strict=False):
        values = [[step["likelihood"] for step in row["steps"]] for row in (alone, guided)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)
        assert {step["implicit"] for step in alone["steps"]} == {None}


def test_a_scorer_without_log_probabilities_is_refused(solutions, tmp_path):
    class Chat(Models):
        def known(self, place):
            return Known(str(place), None)

    with pytest.raises(ValueError, match="the scorer must be a checkpoint, or an endpoint with a tokenizer"):
        locate(solutions, "chat", None, Chat(EngineConfig()), PROMPTS, CONFIG, tmp_path / "x.jsonl")


def test_an_empty_rationale_guides_nobody():
    assert locating.guides("  \n") is None and locating.guides("") is None
    assert locating.guides("add 2") == "add 2"


# ---- The command ----


def test_the_command_prints_measures_and_counts(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "80")
    command = "locate --solutions solutions.jsonl --scorer model --rationalyst model --prompts world"
    assert rationalyst(f"{command} --locate.max_rationale_tokens 4 --out located/steps.jsonl") == 0
    out = capsys.readouterr().out
    for words in ("of these with an error", "AUROC", "shuffled gain", "implicit − shuffled", "tuned on"):
        assert words in out
    assert "…" not in out


def test_failures_are_in_the_order_of_the_names_whoever_failed_first(monkeypatch):
    def fail(numbers, names, begin, models, done, keep, failures, tell):
        failures.update({names[number]: ValueError(names[number]) for number in reversed(numbers)})

    monkeypatch.setattr(blocks, "_work", fail)
    nothing: Any = None
    failures = blocks.in_blocks(["q0", "q1", "q2"], nothing, [], 2, set(), nothing, lambda: None)
    assert list(failures) == ["q0", "q1", "q2"]
