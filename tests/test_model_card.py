"""The card of a trained model tells what its run recorded, in the form that the Hub's own library reads."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from finished_run import write_run
from huggingface_hub import ModelCard

from rationalyst_jax.cli.main import main
from rationalyst_jax.files.whole import read_json, write_json
from rationalyst_jax.mine.store import Provenance, read_filtered, write_filtered
from rationalyst_jax.pipeline.model_card import model_cards
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.report.style import percent, points
from rationalyst_jax.train.rationales import about_rationales

LLAMA = "cache/models--meta-llama--Meta-Llama-3-8B/snapshots/1"
COUNTS = {
    "rationales": 1234,
    "validation": 56,
    "too_long": 7,
    "tokens": 90_000,
    "tree_tokens": 80_000,
    "steps": 3,
    "trained_tokens": 160_000,
    "flops": 1.5e15,
}
RECORD = {
    "model": LLAMA,
    "prompt": [["assistant", "{preceding}<BOT>{rationale}<EOT>"]],
    "sources": [
        {"name": "gsm8k", "documents": 9, "rationales": 30, "tau": [0.5], "reasons": {"gain": 30}},
        {"name": "pile | web", "documents": 8, "rationales": 20, "tau": [-1.0, 0.1], "reasons": {"gain": 20}},
    ],
    "wrote": [{"model": "runs/first/hf", "prompts": "world-2"}],
    "counts": COUNTS,
    "versions": {"jax": "0.10.2"},
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refused)


def leave_training(run: Path, record: dict[str, Any] | None) -> Path:
    """A finished training, but for its weights."""
    write_json(run / "hf" / "config.json", {"model_type": "llama"})
    settings = {"steps": 3, "lora": None, "peak_learning_rate": 2e-5}
    asked = {"rationales": "00", "model": "8303ca7d", "prompts": load_prompts("world").version}
    write_json(run / "train.config.json", {**asked, "train": settings})
    if record is not None:
        write_json(run / "train.json", record)
    return run


@pytest.fixture
def experiment(tmp_path: Path) -> tuple[Path, dict]:
    """A finished experiment with one RATIONALYST, which only `implicit` uses."""
    summary = write_run(tmp_path / "run")
    leave_training(tmp_path / "run" / "train" / "rationalyst", RECORD)
    return tmp_path / "run", summary


def written(run: Path, **options: Any) -> str:
    [path] = model_cards(run, **{"licenses": {}, **options})
    return path.read_text(encoding="utf-8")


def read_by_the_hub(card: str) -> Any:
    """The front matter, as the Hub's library understands it."""
    return ModelCard(card).data


def words(card: str) -> str:
    return " ".join(card.split())


def rows_of(card: str, heading: str) -> list[list[str]]:
    text = card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return lines


def test_the_hubs_library_reads_the_results_that_the_run_recorded(experiment: tuple[Path, dict]):
    run, summary = experiment
    data = read_by_the_hub(written(run, datasets=["org/thoughts"]))
    assert (data.license, data.base_model) == ("llama3", "meta-llama/Meta-Llama-3-8B")
    assert data.datasets == ["org/thoughts"] and data.library_name == "transformers"
    assert data.model_name == "Llama-3-rationalyst"
    assert data.eval_results is not None
    [result] = data.eval_results
    implicit = summary["strategies"]["implicit"]
    assert result.metric_type == "accuracy" and result.metric_value == implicit["accuracy"]
    assert result.metric_args == {"run": "implicit"} | {key: implicit[key] for key in ("n", "low", "high")}
    assert result.dataset_type == "rationalyst-world"  # in the form of GSM8K, but not from there


def test_results_on_a_benchmarks_own_questions_have_its_name(experiment: tuple[Path, dict]):
    run, _ = experiment
    write_json(run / "experiment.config.json", read_json(run / "experiment.config.json") | {"world": None})
    [result] = read_by_the_hub(written(run)).eval_results or []
    assert (result.dataset_type, result.dataset_name) == ("gsm8k", "GSM8K")


def test_the_table_has_every_run_with_its_interval_and_differences(experiment: tuple[Path, dict]):
    run, summary = experiment
    table = {row[0]: row for row in rows_of(written(run), "Results")[1:]}
    assert list(table) == ["random", "likelihood", "**implicit**", "judge"]
    for name, result in summary["strategies"].items():
        row = table["**implicit**" if name == "implicit" else name]
        interval = percent(result["accuracy"], result["low"], result["high"])
        differences = [
            "–" if c is None else points(c["difference"], c["low"], c["high"])
            for c in (result["vs_random"], result["vs_likelihood"])
        ]
        assert row[1:5] == [str(result["n"]), interval, *differences]
        assert row[6] == f"{result['ledger']['flops'] / 1e9:.3g}"


def test_runs_of_another_rationalyst_stay_out(experiment: tuple[Path, dict]):
    run, _ = experiment
    config = read_json(run / "experiment.config.json")
    config["strategies"]["judge"]["rationalyst"] = "other"
    write_json(run / "experiment.config.json", config)
    assert "judge" not in written(run).partition("## Results")[2]


def test_each_trained_model_of_an_experiment_gets_a_card(experiment: tuple[Path, dict]):
    run, summary = experiment
    summary["training"]["all kept"] = summary["training"]["rationalyst"]
    write_json(run / "summary.json", summary)
    config = read_json(run / "experiment.config.json")
    config["rationalysts"]["all kept"] = {"keep": "all", "rounds": None}
    write_json(run / "experiment.config.json", config)
    leave_training(run / "train" / "all_kept", RECORD)
    cards = model_cards(run, name="Llama 3 thoughts", licenses={})
    assert cards == [run / "train" / name / "hf" / "README.md" for name in ("rationalyst", "all_kept")]
    titles = [ModelCard(path.read_text()).content.partition("\n# ")[2].partition("\n")[0] for path in cards]
    assert titles == ["Llama 3 thoughts rationalyst", "Llama 3 thoughts all_kept"]
    assert "**implicit**" not in cards[1].read_text()


def test_a_training_within_an_experiment_is_told_of_its_results(experiment: tuple[Path, dict]):
    run, _ = experiment
    [whole] = model_cards(run, licenses={})
    text = whole.read_text()
    assert written(run / "train" / "rationalyst") == text and "**implicit**" in text


def test_the_card_tells_data_and_training_as_recorded(experiment: tuple[Path, dict]):
    run, summary = experiment
    card = written(run, licenses={"gsm8k": "MIT"})
    data = rows_of(card, "Data")
    assert ["gsm8k", "9", "30", "0.5", "gain (30)", "MIT"] in data
    assert ["-1, 0.1", "gain (20)", "not said"] == data[2][-3:] and "| pile \\| web |" in card
    assert ["wrote", "first/hf", "world-2", "not said"] in data
    [mined] = summary["mining"]
    assert ["1", "25", str(mined["triples"]), str(mined["kept"]), "1", "1e-12"] in data
    training = dict(rows_of(card, "Training"))
    assert training["rationales"] == "1,234" and training["FLOPs of all steps"] == "1.5e+15"
    assert training["tokens of all steps"] == "160,000" and training["versions"] == "jax 0.10.2"
    assert training["loss of the first and the last step (nats per token)"] == "1.000, 0.333"
    assert "Settings: steps 3, peak_learning_rate 2e-05." in card
    assert "    assistant: {preceding}<BOT>{rationale}<EOT>" in card and "--prompts world " in card


def test_what_is_not_recorded_is_said_to_be_so_or_left_out(tmp_path: Path):
    card = words(written(leave_training(tmp_path / "mine", None)))
    for sentence in (
        "The sources of the rationales and their thresholds are not recorded.",
        "The models that wrote and judged the rationales are not recorded.",
        "Counts of examples, tokens and operations are not recorded.",
        "No results are recorded.",
        "The licence of the base model is not said here.",
    ):
        assert sentence in card
    front = read_by_the_hub((tmp_path / "mine" / "hf" / "README.md").read_text()).to_dict()
    assert set(front) == {"library_name", "pipeline_tag", "tags"}


@pytest.mark.parametrize(
    ("model", "licenses", "license", "begins", "shown"),
    [
        ("models/Meta-Llama-3-8B-Instruct", {}, "llama3", "Llama-3-", "Built with Meta Llama 3"),
        ("models/Llama-3.2-1B", {}, "llama3.2", "Llama-", "Built with Llama"),
        ("models/mine", {"mine": "llama3"}, "llama3", "Llama-3-", "Built with Meta Llama 3"),
        ("models/mine", {"models/mine": "mit"}, "mit", "run", None),
        ("world", {}, "apache-2.0", "run", None),
    ],
)
def test_the_licence_of_the_base_decides_name_and_notice(
    tmp_path: Path, model: str, licenses: dict, license: str, begins: str, shown: str | None
):
    card = ModelCard(written(leave_training(tmp_path / "run", {"model": model}), licenses=licenses))
    assert card.data.to_dict()["license"] == license
    assert card.content.partition("\n# ")[2].startswith(begins)
    assert (f"**{shown}**" in card.content) == (shown is not None)
    assert ("Built with" in card.content) == (shown is not None)


def test_the_licence_of_a_base_s_base_binds_too(tmp_path: Path):
    run = leave_training(tmp_path / "run", {"model": "runs/first/hf"})
    write_json(run / "hf" / "base.json", {"base": "meta-llama/Meta-Llama-3-8B"})
    card = words(written(run))
    assert "from first/hf (fingerprint" in card and "which began with meta-llama/Meta-Llama-3-8B" in card
    assert "**Built with Meta Llama 3**" in card and "# Llama-3-" in card


def test_a_name_that_the_licence_does_not_allow_is_refused(experiment: tuple[Path, dict]):
    run, _ = experiment
    with pytest.raises(ValueError, match="asks for a name that begins with 'Llama 3', got 'Thoughts'"):
        written(run, name="Thoughts")
    assert not list(run.rglob("README.md"))


def test_rationales_of_llama_3_bind_a_model_of_another_family(tmp_path: Path):
    wrote = {"wrote": [{"model": "Meta-Llama-3-8B-Instruct", "prompts": "llama3-3"}]}
    other = words(written(leave_training(tmp_path / "other", {"model": "models/OLMo", **wrote})))
    llama = words(written(leave_training(tmp_path / "llama", {"model": LLAMA, **wrote})))
    sentence = "Rationales by Meta-Llama-3-8B-Instruct are under the Meta Llama 3 Community License."
    assert sentence in other and sentence not in llama


def test_a_card_is_written_again_but_never_over_what_somebody_wrote(experiment: tuple[Path, dict]):
    run, _ = experiment
    readme = run / "train" / "rationalyst" / "hf" / "README.md"
    first = written(run)
    assert written(run, licenses={"gsm8k": "MIT"}) != first
    for text in (first.replace("## Limits", "## Limits and thanks"), "# Mine\n", ""):
        readme.write_text(text)
        with pytest.raises(ValueError, match=r"hf/README\.md: is not as this command wrote it"):
            written(run)
        assert readme.read_text() == text


def test_results_of_a_benchmark_are_those_of_this_checkpoint(tmp_path: Path):
    from rationalyst_jax.lm.weights.hf import fingerprint

    run = leave_training(tmp_path / "run", RECORD)
    ledger = {"generated by rationalyst": 12.0, "flops": 2e9}
    strict = {"accuracy": 0.75, "low": 0.5, "high": 0.9, "n": 20}
    cell = {"checkpoint": "tuned", "strict": strict, "versus": {}, "ledger": ledger}
    plain = cell | {"ledger": ledger | {"generated by rationalyst": 0.0}}
    cells = {
        "tuned, implicit": cell,
        "tuned, random": plain,
        "other, implicit": cell | {"checkpoint": "other"},
    }
    of_task = {"title": "MATH", "cells": cells}
    write_json(tmp_path / "bench" / "summary.json", {"limit": 20, "samples": 1, "tasks": {"math": of_task}})
    models = {"agent": "aa", "here": fingerprint(run / "hf"), "there": "bb"}
    places = {
        "tuned": {"agent": "agent", "rationalyst": "here", "scorer": None},
        "other": {"agent": "agent", "rationalyst": "there", "scorer": None},
    }
    write_json(tmp_path / "bench" / "experiment.config.json", {"models": models, "checkpoints": places})
    card = written(run, benchmarks=[tmp_path / "bench"])
    [result] = read_by_the_hub(card).eval_results or []
    assert (result.dataset_type, result.metric_value) == ("math", 0.75)
    assert [row[0] for row in rows_of(card, "Results")[1:]] == ["**tuned, implicit**", "tuned, random"]
    write_json(run / "hf" / "config.json", {"model_type": "llama", "other": True})
    with pytest.raises(ValueError, match="bench: no checkpoint of this benchmark is"):
        written(run, benchmarks=[tmp_path / "bench"])


def test_hostile_names_stay_in_their_places(tmp_path: Path):
    name = "---\nlicense: none\n---"
    card = ModelCard(written(leave_training(tmp_path / "run", None), name=name, datasets=[name]))
    assert card.data.to_dict()["datasets"] == [name] and "license" not in card.data.to_dict()


def test_bad_input_is_one_line(experiment: tuple[Path, dict], capsys: pytest.CaptureFixture[str]):
    run, summary = experiment
    (run / "train" / "rationalyst" / "hf" / "config.json").unlink()
    for arguments, code, told in (
        (["--model", str(run)], 1, "train/rationalyst/hf: no exported checkpoint; give the run directory"),
        (["--model", str(run / "mine")], 1, "mine/hf: no exported checkpoint; give the run directory"),
        (["--model", str(run), "--out", "x"], 2, "--out: not with --model"),
        (["--rationales", "x", "--out", "x", "--datasets", "[a]"], 2, "--datasets: only with --model"),
        (["--rationales", "x"], 2, "give --rationales and --out, or --model"),
    ):
        assert main(["card", *arguments]) == code
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    write_json(run / "summary.json", summary | {"training": {}})
    assert main(["card", "--model", str(run)]) == 1
    assert "trained no RATIONALYST" in capsys.readouterr().err


def test_a_licence_of_what_is_not_there_is_refused(experiment: tuple[Path, dict]):
    run, _ = experiment
    with pytest.raises(ValueError, match=r"there is no source or model gsm9k: there are .*gsm8k"):
        written(run, licenses={"gsm9k": "MIT"})


def test_the_command_names_its_card(experiment: tuple[Path, dict], capsys: pytest.CaptureFixture[str]):
    run, _ = experiment
    assert main(["card", "--model", str(run), "--licenses", json.dumps({"gsm8k": "MIT"})]) == 0
    assert capsys.readouterr().out.endswith("train/rationalyst/hf/README.md: written\n")


def test_files_of_rationales_say_where_they_are_from(experiment: tuple[Path, dict], tmp_path: Path):
    run, _ = experiment
    rows = read_filtered(run / "mine" / "filtered.parquet")
    judged = {"filter_model": "judge", "filter_prompts": "world-1"}
    write_filtered(tmp_path / "learned" / "1.parquet", rows, Provenance("annotator", "world-1", judged))
    write_filtered(tmp_path / "learned" / "2.parquet", rows[:3], Provenance("second", "world-1", judged))
    kept = [row for row in [*rows, *rows[:3]] if row.kept]
    found = about_rationales(tmp_path / "learned")
    assert found == {
        "sources": [
            {
                "name": "world",
                "documents": len({row.document_id for row in kept}),
                "rationales": len(kept),
                "tau": [0.1],
                "reasons": {"gain": len(kept)},
            }
        ],
        "wrote": [{"model": name, "prompts": "world-1"} for name in ("annotator", "second")],
        "judged": [{"model": "judge", "prompts": "world-1"}],
    }
    (tmp_path / "plain.jsonl").write_text('{"document_id": "a", "preceding": "b", "rationale": "c"}\n')
    assert about_rationales(tmp_path / "plain.jsonl") == {}
