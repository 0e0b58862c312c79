"""Choice by likelihood: lm-evaluation-harness with its transformers backend is the oracle."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from random_model import random_llama

from rationalyst_jax.cli.main import main
from rationalyst_jax.evaluate.choice_likelihood import (
    ChoiceScores,
    GuidedAccuracy,
    begin,
    check_lengths,
    choice_scores,
    encode_clozes,
)
from rationalyst_jax.evaluate.config import ChooseConfig
from rationalyst_jax.evaluate.statistics import difference_interval, proportion_interval
from rationalyst_jax.files.rows import Row, read_table
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.trees.likelihood import Work
from rationalyst_jax.lm.weights.hf import load_llama, save_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.pipeline import choose as choosing
from rationalyst_jax.pipeline.choose import WHOSE, Guide, choose
from rationalyst_jax.pipeline.models import Models
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.tasks import benchmarks
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.cloze import Cloze
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.world.checkpoint import checkpoint_path

TINY = LlamaConfig(128256, 32, 64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, bos_token_id=128000)
OURS = {
    "hellaswag": "hellaswag",
    "arc_challenge": "arc",
    "commonsense_qa": "commonsense_qa",
    "leaderboard_mmlu_pro": "mmlu_pro",
}
ROWS = {
    "hellaswag": "hellaswag/val_1000.jsonl",
    "arc_challenge": "arc/test.jsonl",
    "commonsense_qa": "ecqa/cqa_dev.jsonl",
    "leaderboard_mmlu_pro": "mmlu_pro/test.parquet",
}
THEIR_FILE = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
    "leaderboard_mmlu_pro": "leaderboard/mmlu_pro/mmlu_pro.yaml",
}
THEIR_METRIC = {
    "sum": "acc",
    "per_character": "acc_norm",
    "per_byte": "acc_bytes",
    "unconditional": "acc_mutual_info",
}


# ---- lm-evaluation-harness ----


@pytest.fixture(scope="module")
def llama3(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: a tiny Llama with random weights and the real tokenizer."""
    folder = tmp_path_factory.mktemp("llama3")
    save_llama(random_llama(TINY), folder)
    for file in (shared / "llama3_tokenizer").glob("*.json"):
        shutil.copy(file, folder)
    return folder


EVALUATING = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

asked = json.loads(sys.argv[1])
found = lm_eval.simple_evaluate(
    model="hf", model_args=asked["model"], device="cpu", batch_size=2, tasks=asked["tasks"],
    task_manager=TaskManager(include_path=asked["include"], include_defaults=False),
    log_samples=True, bootstrap_iters=0,
)
with open(asked["out"], "w") as file:
    json.dump([found["samples"], found["results"]], file, default=str)
"""


def their_rows(task: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as the harness reads them: CommonsenseQA not as it was published, but as its copy on the hub.

    MMLU-Pro without the blanks around some texts, which we take off.
    """
    if task == "leaderboard_mmlu_pro":
        texts = [(row["question"].strip(), [option.strip() for option in row["options"]]) for row in rows]
        return [
            row | {"question": question, "options": options}
            for row, (question, options) in zip(rows, texts, strict=True)
        ]
    if task != "commonsense_qa":
        return rows
    found = []
    for row in rows:
        listed = row["question"]["choices"]
        choices = {key: [option[key] for option in listed] for key in ("label", "text")}
        flat = {"question": row["question"]["stem"], "choices": choices}
        found.append({"id": row["id"], "answerKey": row["answerKey"], **flat})
    return found


def harness(folder: Path, questions: dict[str, list[dict[str, Any]]], out: Path) -> tuple[dict, dict]:
    """The samples and the results of its own tasks, read from files instead of the hub."""
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    for task, rows in questions.items():
        file = out / f"{task}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in their_rows(task, rows)), encoding="utf-8")
        changed: dict[str, Any] = {
            "include": str(Path(spec.origin).parent / "tasks" / THEIR_FILE[task]),
            "task": f"offline_{task}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "num_fewshot": 0,
            "metric_list": [{"metric": metric} for metric in THEIR_METRIC.values()],
        }
        changed |= dict.fromkeys(("training_split", "validation_split", "fewshot_split", "fewshot_config"))
        (out / f"{task}.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    asked = {
        "model": f"pretrained={folder},dtype=float32",
        "tasks": [f"offline_{task}" for task in questions],
        "include": str(out),
        "out": str(out / "samples.json"),
    }
    offline = {"HF_HOME": str(out), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", EVALUATING, json.dumps(asked)]
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    samples, results = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    ordered = {task: sorted(samples[f"offline_{task}"], key=lambda one: one["doc_id"]) for task in questions}
    return ordered, {task: results[f"offline_{task}"] for task in questions}


@pytest.mark.skipif(
    not (find_spec("lm_eval") and find_spec("torch")), reason="lm-eval and torch come with the test extra"
)
@pytest.mark.parametrize("n", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_choices_have_the_likelihoods_and_accuracies_that_the_harness_finds(shared, llama3, tmp_path, n):
    questions = {}
    for task, file in ROWS.items():
        questions[task] = [row for _, row in read_table(shared / file)][:n]
    samples, results = harness(llama3, questions, tmp_path)
    furthest = 0.0
    with Models(EngineConfig()) as models:
        for task in ROWS:
            out = tmp_path / f"{task}.out.jsonl"
            found = choose(
                task_named(OURS[task]), shared / ROWS[task], llama3, models, ChooseConfig(), out, limit=n
            )
            ours = [row for _, row in read_table(out)]
            assert len(ours) == len(samples[task]) == n
            for mine, theirs in zip(ours, samples[task], strict=True):
                furthest = max(furthest, difference(mine, theirs))
            for rule, interval in found.accuracy.items():
                if rule in THEIR_METRIC:
                    assert interval.mean == pytest.approx(results[task][f"{THEIR_METRIC[rule]},none"]), rule
            for rule in THEIR_METRIC:
                assert len({row["picked"][rule] for row in ours}) > 1, f"{task}: {rule} picks one letter"
    print(f"{n} questions of each task: numbers differ by at most {furthest:.2g} nats")


def difference(mine: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference (nats) of two log-likelihoods; texts, picks and grades must be the same."""
    asked = [list(pair) for pair in theirs["arguments"]]
    n = len(mine["choices"])
    assert asked[:n] == [[mine["context"], f" {choice}"] for choice in mine["choices"]]
    assert asked[n:] == [["", f" {choice}"] for choice in mine["choices"]]
    sums = np.array([float(logprob) for logprob, _ in theirs["filtered_resps"]])
    numbers = np.array([*mine["sum"], *np.subtract(mine["sum"], mine["unconditional"])])
    np.testing.assert_allclose(numbers, sums, atol=1e-3, rtol=0)
    for rule, metric in THEIR_METRIC.items():
        assert (mine["picked"][rule] == mine["gold"]) == bool(theirs[metric]), (mine["id"], rule)
    return float(np.abs(numbers - sums).max())


# ---- Numbers and tokens ----


@pytest.fixture(scope="module")
def world() -> tuple[Any, Any]:
    """The shipped model and its tokenizer."""
    folder = checkpoint_path("world")
    return load_llama(folder), load_tokenizer(folder)


@pytest.fixture(scope="module")
def llama3_tokenizer(shared: Path) -> Any:
    return load_tokenizer(shared / "llama3_tokenizer")


WORLD = {
    f"q{i}": Cloze(
        f"At first Ann has {i} apples. Ben has 2 more apples than Ann.\nSo Ben has {i} + 2 =",
        (f"{i + 2} apples.", f"{i + 3} apples.", f"{i} pens.", "no more", f"{i + 2} apples."),
    )
    for i in range(3, 9)
}


def test_each_rule_is_what_its_name_says():
    logprobs = [np.array([-1.0, -2.0, -3.0]), np.array([-8.0])]
    alone = [np.array([-4.0, -1.0, -0.5]), np.array([-9.0])]
    found = choice_scores(Cloze("x", ("né", "abcd")), logprobs, alone)
    assert found.tokens == (3, 1)
    assert found.values == {
        "sum": (-6.0, -8.0),
        "per_character": (-3.0, -2.0),
        "per_byte": (-2.0, -2.0),
        "per_token": (-2.0, -8.0),
        "unconditional": (-0.5, 1.0),
    }
    assert [found.picked(rule) for rule in found.values] == [0, 1, 0, 0, 1]


def test_of_equal_choices_the_first_is_picked(world):
    model, tokenizer = world
    found = begin(model, encode_clozes(tokenizer, WORLD), ChooseConfig(row_length=256)).result()
    assert all(scores.values["sum"][0] == scores.values["sum"][4] for scores in found.values())
    picked = [scores.picked("sum") for scores in found.values()]
    assert picked.count(0) == len(picked)  # the model can add


def test_questions_of_a_block_have_the_numbers_that_each_has_alone(world):
    model, tokenizer = world
    encoded = encode_clozes(tokenizer, WORLD)
    config = ChooseConfig(row_length=80, rows_per_batch=2)
    together = begin(model, encoded, config).result()
    for name, one in encoded.items():
        [alone] = begin(model, {name: one}, config).result().values()
        for rule, numbers in together[name].values.items():
            np.testing.assert_allclose(numbers, alone.values[rule], atol=1e-4)


def test_without_the_unconditional_rule_the_others_are_the_same(world):
    model, tokenizer = world
    encoded = encode_clozes(tokenizer, WORLD)
    every = begin(model, encoded, ChooseConfig(row_length=80)).result()
    fewer = begin(model, encoded, ChooseConfig(row_length=80, unconditional=False)).result()
    for name, scores in fewer.items():
        assert every[name].values.keys() - scores.values.keys() == {"unconditional"}
        for rule, numbers in scores.values.items():
            np.testing.assert_allclose(numbers, every[name].values[rule], atol=1e-4)


def test_under_a_rationale_choices_have_the_numbers_of_a_context_that_has_it(world):
    model, tokenizer = world
    rationales = {name: ("Add them.", " Ben has more.\n", " ") for name in WORLD}
    config = ChooseConfig(row_length=256)
    found = begin(model, encode_clozes(tokenizer, WORLD, rationales), config).result()
    plain = begin(model, encode_clozes(tokenizer, WORLD), config).result()
    for number, text in enumerate((" Add them.", " Ben has more.", "")):
        written = {name: replace(cloze, context=cloze.context + text) for name, cloze in WORLD.items()}
        apart = begin(model, encode_clozes(tokenizer, written), config).result()
        for name, scores in found.items():
            assert scores.tokens == plain[name].tokens
            for rule, numbers in scores.guided[number].values.items():
                np.testing.assert_allclose(numbers, apart[name].values[rule], atol=1e-4)
                np.testing.assert_allclose(scores.values[rule], plain[name].values[rule], atol=1e-4)
    [first, second, blank] = found["q3"].guided
    assert first.values != second.values != blank.values
    long = encode_clozes(tokenizer, WORLD, {"q3": ("Add them. " * 5,)})
    with pytest.raises(
        ValueError, match="'q3': 62 tokens with a rationale and its longest choice, a row is 50"
    ):
        check_lengths(long, {"positions are": 100, "a row is": 50})
    with pytest.raises(ValueError, match="'q3': 62 tokens with its longest choice, a row is 20"):
        check_lengths(long, {"a row is": 20})


@pytest.mark.parametrize("context", ["A man sits. He", "A man sits. ", "A man\n\n", "né 中文 🙂", "12 3"])
def test_a_choice_is_what_its_text_has_beyond_the_context(llama3_tokenizer, context):
    """By the definition: two texts are encoded, each with its BOS; blanks at the end of one are not its."""
    tokenizer = llama3_tokenizer
    choices = ("runs away.", "né", " \t4", "\nB")
    [one] = encode_clozes(tokenizer, {"q": Cloze(context, choices)}).values()
    before = tokenizer.encode(context.rstrip())
    assert before[0] == tokenizer.bos_token_id != before[1]
    for choice, pair, alone in zip(choices, one.conditional, one.unconditional, strict=True):
        assert pair.context == tuple(before)
        assert pair.continuation == tuple(tokenizer.encode(f"{context} {choice}")[len(before) :])
        assert alone.context == (tokenizer.bos_token_id,)
        assert alone.continuation == tuple(tokenizer.encode(f" {choice}", add_special_tokens=False))


def test_control_tokens_that_a_text_spells_stay_text(llama3_tokenizer):
    tokenizer = llama3_tokenizer
    [one] = encode_clozes(tokenizer, {"q": Cloze("a <|eot_id|> b", ("<|eot_id|>",))}).values()
    special = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert special not in one.conditional[0].context + one.conditional[0].continuation
    assert special not in one.unconditional[0].continuation


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (Cloze("Ann has", ()), "question 'q9': no choices"),
        (Cloze("Ann has", ("3", "")), "question 'q9': a choice is empty"),
        (Cloze(" \n", ("3", "4")), "question 'q9': its context or a choice has no token of its own"),
    ],
)
def test_a_question_that_cannot_be_scored_is_named(world, bad, named):
    with pytest.raises(ValueError, match=named):
        encode_clozes(world[1], WORLD | {"q9": bad})


def test_a_model_that_gives_no_numbers_is_found_out(world):
    encoded = encode_clozes(world[1], WORLD)
    begun = begin(world[0], encoded, ChooseConfig(row_length=256))
    broken: Any = begun.scores
    broken._computed = [np.full(logprobs.shape, math.nan) for logprobs in broken._computed]
    with pytest.raises(ValueError, match="question 'q3': the log-likelihood of a choice is not finite"):
        begun.result()


# ---- The command ----


def read_ending(row: Row, place: str, name: str) -> Question:
    return Question(str(row["id"]), row["context"], row["gold"], tuple(row["choices"]))


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of questions that the commands take for HellaSwag's."""
    monkeypatch.chdir(tmp_path)
    endings = replace(task_named("hellaswag"), name="endings", question=read_ending)
    monkeypatch.setitem(benchmarks.TASKS, "hellaswag", endings)
    write_questions(tmp_path / "questions.jsonl", WORLD)
    return tmp_path / "questions.jsonl"


def write_questions(path: Path, clozes: dict[str, Cloze], gold: str = "A") -> None:
    rows = [
        {"id": name, "context": one.context, "choices": one.choices, "gold": gold}
        for name, one in clozes.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


COMMAND = "choose --task hellaswag --questions questions.jsonl --model world --choose.row_length 256 --out "


def rationalyst(command: str) -> int:
    return main(shlex.split(command))


def test_the_command_names_every_number_and_prints_every_rule(questions, capsys):
    assert rationalyst(f"{COMMAND} out.jsonl --limit 5") == 0
    rows = [row for _, row in read_table(Path("out.jsonl"))]
    assert [row["id"] for row in rows] == [*WORLD][:5]
    assert list(rows[0]) == [
        *("id", "gold", "context", "choices", "tokens"),
        *("sum", "per_character", "per_byte", "per_token", "unconditional", "picked"),
    ]
    assert all(len(row[key]) == 5 for row in rows for key in list(rows[0])[3:10])
    assert all(row["picked"]["sum"] == "A" for row in rows)
    shown = capsys.readouterr().out
    assert "n = 5" in shown
    assert "100.0 [54." in shown  # five of five: the exact interval, not one of no width
    for rule, theirs in (("sum", "acc"), ("per_character", "acc_norm"), ("per_token", "–")):
        assert any({rule, theirs} <= {*line.split()} for line in shown.splitlines()), shown


def test_questions_without_answers_are_scored_and_not_graded(questions, capsys):
    write_questions(questions, WORLD, gold="")
    assert rationalyst(f"{COMMAND} out.jsonl") == 0
    assert "6 questions scored, none with an answer" in capsys.readouterr().out
    assert {row["gold"] for _, row in read_table(Path("out.jsonl"))} == {None}


class Killed(Exception):
    pass


def dying_at(monkeypatch: pytest.MonkeyPatch, calls: int) -> list[list[str]]:
    """Kills scoring before the block of that number; gives the names in each block that was begun."""
    real = choosing.begin
    begun: list[list[str]] = []

    def counting(model, encoded, *options):
        begun.append([*encoded])
        if len(begun) == calls:
            raise Killed
        return real(model, encoded, *options)

    monkeypatch.setattr(choosing, "begin", counting)
    return begun


def test_a_killed_run_continues_to_the_same_bytes(questions, monkeypatch):
    blocks = f"{COMMAND}{{}} --choose.block 2"
    assert rationalyst(blocks.format("whole.jsonl")) == 0
    begun = dying_at(monkeypatch, 3)
    with pytest.raises(Killed):
        rationalyst(blocks.format("killed.jsonl"))
    assert not Path("killed.jsonl").exists() and Path("killed.jsonl.partial").stat().st_size
    assert rationalyst(blocks.format("killed.jsonl") + " --choose.rows_per_batch 2") == 1
    assert rationalyst(blocks.format("killed.jsonl")) == 0
    assert [names[0] for names in begun] == ["q3", "q5", "q7", "q5", "q7"]
    assert Path("killed.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert not Path("killed.jsonl.partial").exists()
    records = [Path(f"{name}.jsonl.config.json").read_bytes() for name in ("killed", "whole")]
    assert records[0] == records[1]  # what was asked, of a file that is whole


def test_a_question_that_changed_after_a_kill_is_scored_again(questions, monkeypatch):
    begun = dying_at(monkeypatch, 4)
    command = f"{COMMAND} out.jsonl --choose.block 1"
    with pytest.raises(Killed):
        rationalyst(command)
    write_questions(questions, WORLD | {"q3": Cloze("Ann has", ("3 apples.", "4 pens."))})
    assert rationalyst(command) == 0
    assert [names[0] for names in begun] == ["q3", "q4", "q5", "q6", "q3", "q5", "q6", "q7", "q8"]
    assert [len(row["choices"]) for _, row in read_table(Path("out.jsonl"))] == [2, 5, 5, 5, 5, 5]


GUIDED = f"{COMMAND} {{}} --rationalyst world --prompts world --choose.max_rationale_tokens 8"


def test_choices_are_scored_with_the_rationale_of_their_question_and_of_another(questions, capsys):
    assert rationalyst(GUIDED.format("out.jsonl")) == 0
    rows = [row for _, row in read_table(Path("out.jsonl"))]
    written = {row["id"]: row for _, row in read_table(Path("out.jsonl.rationales.jsonl"))}
    own = {name: row["rationale"] for name, row in written.items()}
    assert [*own] == [row["id"] for row in rows] == [*WORLD]
    for row in rows:
        assert row["rationales"]["own"] == own[row["id"]]
        assert row["rationales"]["stranger"] in [own[name] for name in own if name != row["id"]]
        assert [*row["guided"]] == ["own", "stranger"]
        assert all(
            len(of["sum"]) == 5 and of["picked"].keys() == row["picked"].keys()
            for of in row["guided"].values()
        )
    assert len({text for text in own.values() if text.strip()}) > 1
    shown = capsys.readouterr().out.split("with a rationale before the choices")
    for rule in ("sum", "unconditional"):
        counts = [sum(row["guided"][whose]["picked"][rule] == "A" for row in rows) for whose in WHOSE]
        alone = sum(row["picked"][rule] == "A" for row in rows)
        own = counts[0]
        line = next(line for line in shown[1].splitlines() if rule in line)
        assert f"{100 * own / 6:.1f} [" in line
        assert f"{100 * (own - alone) / 6:+.1f} [" in line and f"{100 * (own - counts[1]) / 6:+.1f} [" in line
        assert all(len(line) <= 80 for line in shown[1].splitlines())
    # Without a RATIONALYST numbers are the same, and the settings are others.
    assert rationalyst(f"{COMMAND} plain.jsonl") == 0
    for (_, plain), row in zip(read_table(Path("plain.jsonl")), rows, strict=True):
        np.testing.assert_allclose(plain["sum"], row["sum"], atol=1e-4)


def test_figures_with_rationales_are_those_of_the_rows(questions, monkeypatch):
    # Of each question what is picked without a rationale, with its own, and with a stranger's.
    picks = dict(zip(WORLD, ("BAB", "BAB", "AAB", "AAA", "BBB", "BAA"), strict=True))

    def scores(letter: str) -> ChoiceScores:
        return ChoiceScores((1, 1), {"sum": (0.0, -1.0) if letter == "A" else (-1.0, 0.0)})

    def begin(model: Any, encoded: dict[str, Any], *options: Any) -> Any:
        found = {}
        for name in encoded:
            plain, *guided = map(scores, picks[name])
            found[name] = replace(plain, guided=tuple(guided))
        return SimpleNamespace(scores=SimpleNamespace(work=Work()), result=lambda tell: found)

    monkeypatch.setattr(choosing, "begin", begin)
    guide = Guide("world", load_prompts("world"))
    config = ChooseConfig(row_length=256, max_rationale_tokens=2)
    with Models(EngineConfig()) as models:
        task = task_named("hellaswag")
        found = choose(task, questions, "world", models, config, Path("out.jsonl"), guide=guide)
    none, own, stranger = ([of[i] == "A" for of in picks.values()] for i in range(3))
    assert found.accuracy == {"sum": proportion_interval(none)}
    assert found.guided == {
        "sum": GuidedAccuracy(
            proportion_interval(own), difference_interval(own, none), difference_interval(own, stranger)
        )
    }
    assert found.guided["sum"].own_less_none.mean == found.guided["sum"].own_less_stranger.mean == 0.5


def test_written_rationales_are_used_without_opening_rationalyst(questions, monkeypatch, capsys):
    assert rationalyst(GUIDED.format("out.jsonl")) == 0
    Path("out.jsonl").rename("first.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr(Models, "roles", lambda *_: pytest.fail("RATIONALYST is opened"))
        assert rationalyst(GUIDED.format("out.jsonl")) == 0
    assert Path("out.jsonl").read_bytes() == Path("first.jsonl").read_bytes()
    write_questions(questions, {f"{name}-other": cloze for name, cloze in WORLD.items()})
    assert rationalyst(GUIDED.format("out.jsonl")) == 1
    assert "out.jsonl.rationales.jsonl: holds other questions alone" in capsys.readouterr().err


def test_a_question_beyond_the_positions_is_named_before_rationales_are_written(
    questions, monkeypatch, capsys
):
    real = Models.checkpoint

    def short(models: Models, place: Any) -> Any:
        checkpoint = real(models, place)
        return replace(checkpoint, config=replace(checkpoint.config, max_position_embeddings=20))

    monkeypatch.setattr(Models, "checkpoint", short)
    monkeypatch.setattr(Models, "roles", lambda *_: pytest.fail("RATIONALYST is opened"))
    assert rationalyst(GUIDED.format("out.jsonl")) == 1
    assert "with its longest choice, the positions of the model are 20" in capsys.readouterr().err


def test_progress_of_both_passes_never_goes_back(questions):
    told: list[tuple[int, int, int]] = []
    guide = Guide("world", load_prompts("world"))
    config = ChooseConfig(row_length=256, block=2, max_rationale_tokens=4)
    with Models(EngineConfig()) as models:
        choose(
            task_named("hellaswag"),
            questions,
            "world",
            models,
            config,
            Path("out.jsonl"),
            guide=guide,
            progress=lambda *numbers: told.append(numbers),
        )
    assert {total for _, total, _ in told} == {12} and told[-1][0] == 12
    for numbers in zip(*told, strict=True):
        assert list(numbers) == sorted(numbers)
    assert told[0][2] == 0 < told[-1][2]


def test_the_stranger_is_of_another_passage_and_drawn_by_the_seed():
    asked = {f"q{i}": Question(f"q{i}", "", passage=f"p{i // 2}") for i in range(6)}
    drawn = [choosing._strangers(asked, seed) for seed in range(60)]
    for of_seed in drawn:
        assert all(asked[name].passage != asked[other].passage for name, other in of_seed.items())
    assert {of_seed["q0"] for of_seed in drawn} == {"q2", "q3", "q4", "q5"}
    assert drawn[3] == choosing._strangers(asked, 3) != drawn[4]
    with pytest.raises(ValueError, match="give two or more"):
        choosing._strangers({name: asked[name] for name in ("q0", "q1")}, 0)


def test_a_killed_run_with_rationales_continues_to_the_same_bytes(questions, monkeypatch):
    blocks = f"{GUIDED} --choose.block 2"
    assert rationalyst(blocks.format("whole.jsonl")) == 0
    begun = dying_at(monkeypatch, 3)
    with pytest.raises(Killed):
        rationalyst(blocks.format("killed.jsonl"))
    other = blocks.format("killed.jsonl").replace("_tokens 8", "_tokens 4")
    assert rationalyst(other) == 1
    assert rationalyst(blocks.format("killed.jsonl")) == 0
    assert [names[0] for names in begun] == ["q3", "q5", "q7", "q5", "q7"]
    for end in ("", ".rationales.jsonl", ".config.json"):
        assert Path(f"killed.jsonl{end}").read_bytes() == Path(f"whole.jsonl{end}").read_bytes()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--task gsm8k", "choose: gsm8k has no choices that a likelihood could be asked for"),
        ("--choose.row_length 20", "tokens with its longest choice, choose.row_length is 20"),
        ("--choose.rows_per_batch 0", "choose: rows_per_batch must be at least 1, got 0"),
        ("--choose.rows_per_batch 6 --mesh.fsdp -1", "rows_per_batch must be a multiple of the mesh's 8"),
        ("--model nowhere", "nowhere: no such checkpoint folder"),
        ("--questions nowhere.jsonl", "nowhere.jsonl"),
        ("--rationalyst nowhere", "nowhere: no such checkpoint folder"),
        ("--rationalyst world --prompts world --choose.row_length 20", "choose.row_length is 20"),
        ("--rationalyst world --prompts world --limit 1", "give two or more"),
    ],
)
def test_a_mistake_is_named_before_weights_are_read(questions, monkeypatch, capsys, options, named):
    monkeypatch.setattr(Models, "scorer", lambda *_: pytest.fail("weights are read"))
    monkeypatch.setattr(Models, "roles", lambda *_: pytest.fail("weights are read"))
    assert rationalyst(f"{COMMAND} out.jsonl {options}") in (1, 2)
    assert named in capsys.readouterr().err
    assert not Path("out.jsonl").exists()
