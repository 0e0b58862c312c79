"""The commands, called in this process on tiny files: what they write and print."""

import importlib
import json
import logging
import re
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import count
from pathlib import Path

import cli_files
import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_files import ANNOTATED, rationalyst

from rationalyst_jax.cli import evaluate
from rationalyst_jax.cli.main import COMMANDS, CONFIGS, main, parser_of
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import Generation, Handle, ScoreRequest
from rationalyst_jax.mine import likelihood_filter
from rationalyst_jax.mine.store import Provenance, read_filtered, read_triples, write_filtered
from rationalyst_jax.pipeline import score as scoring
from rationalyst_jax.reason.traces import read_traces


@pytest.fixture(autouse=True)
def here(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "120")


def test_help_lists_every_command(capsys):
    assert rationalyst("--help") == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    for name in COMMANDS:
        assert rationalyst(f"{name} --help") == 0
        out = capsys.readouterr().out
        assert "--config" in out
        assert "<class" not in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name):
    command = importlib.import_module(f"rationalyst_jax.cli.{name.replace(' ', '_')}")
    actions = parser_of(name, command)._actions
    assert not [action.dest for action in actions if not action.help]


def test_help_and_mistakes_in_options_come_before_jax_is_imported():
    program = """
import sys
from rationalyst_jax.cli.main import COMMANDS, main
for name in COMMANDS:
    assert main([*name.split(), "--nonsense", "1"]) == 2, name
assert main(["--help"]) == 0
slow = {"jax", "transformers", "scipy", "pyarrow"} & {*sys.modules}
assert not slow, slow
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_command_mutes_no_error_of_other_threads():
    program = """
import logging, sys, threading
from rationalyst_jax.cli.main import main
assert main(["stats", "--nonsense", "1"]) == 2
assert sys.unraisablehook is sys.__unraisablehook__
assert threading.excepthook is threading.__excepthook__
assert logging.getLogger("asyncio").isEnabledFor(logging.ERROR)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_training_mutes_no_error_of_other_threads(monkeypatch, capsys):
    from rationalyst_jax.train import loop

    def hooks():
        told = logging.getLogger("asyncio").getEffectiveLevel()
        return sys.excepthook, sys.unraisablehook, threading.excepthook, told

    def inside(*_):
        found.append(hooks())
        raise ValueError("far enough")

    found = []
    before = hooks()
    monkeypatch.setattr(loop, "_compiled", inside)
    command = "train --rationales filtered.parquet --model model --prompts world --run_dir hooks"
    assert rationalyst(f"{command} --train.row_length 64 --train.validation_fraction 0") == 1
    assert "far enough" in capsys.readouterr().err
    assert found == [before]


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_config_is_one_of_its_command(name, capsys):
    command = {"ablations": "ablate", "paper": "benchmark"}.get(name)
    command = command or next(part for part in name.split("-") if part in COMMANDS)
    assert rationalyst(f"{command} --config {name} --print_config") == 0
    assert "prompts: " in capsys.readouterr().out


def test_files_and_folders_of_its_name_do_not_hide_a_shipped_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    Path("llama3-8b-filter").write_text("prompts: world\nfilter: {tau: 7.0}\n")
    assert rationalyst("demo --print_config") == 0
    assert "strategies:" in capsys.readouterr().out
    assert rationalyst("filter --config llama3-8b-filter --print_config") == 0
    assert "prompts: llama3" in capsys.readouterr().out
    assert rationalyst("filter --config ./llama3-8b-filter --print_config") == 0
    assert "tau: 7.0" in capsys.readouterr().out


def test_an_option_overrides_a_config_file_wherever_it_stands(capsys):
    assert rationalyst("filter --filter.tau 3 --config tau.yaml --print_config") == 0
    out = capsys.readouterr().out
    assert "tau: 3.0" in out and "decay: 0.8" in out and "prompts: world" in out


def test_demo_runs_the_experiment_of_its_config_with_overrides(monkeypatch):
    from rationalyst_jax.pipeline import experiment

    ran = []
    monkeypatch.setattr(experiment, "run", lambda config, *, full, console: ran.append((config, full)))
    options = "--seed 1 --run_dir runs/one --world.questions 7 --reason.max_steps 3"
    assert rationalyst(f"demo {options} --full") == 0
    [(config, full)] = ran
    assert full and (config.seed, config.run_dir) == (1, "runs/one")
    assert (config.world.questions, config.reason.max_steps) == (7, 3)
    assert next(iter(config.strategies)) == "random" and not config.rationalysts["untuned"].train


def test_ablate_runs_its_experiment_with_what_is_marked_full(monkeypatch):
    from rationalyst_jax.pipeline import experiment

    ran = []
    monkeypatch.setattr(experiment, "run", lambda config, *, full, console: ran.append((config, full)))
    assert rationalyst("ablate --run_dir x --world.questions 7") == 0
    [(config, full)] = ran
    assert full and config.world.questions == 7
    assert config.baseline == "implicit" and set(config.curves) == {"share", "tau", "candidates"}
    assert config.rationalysts["a tenth"].share == 0.1 and config.rationalysts["tau=-0.1"].tau == -0.1


def test_an_unexpected_exception_is_not_hidden(monkeypatch):
    def broken(**options):
        raise KeyError("a bug")

    monkeypatch.setattr(evaluate, "run", broken)
    monkeypatch.setattr(evaluate, "add_arguments", lambda parser: None)
    with pytest.raises(KeyError, match="a bug"):
        main(["evaluate"])


def test_documents_are_deduplicated_and_then_decontaminated(capsys):
    lines = Path("documents.jsonl").read_text().splitlines()
    extra = json.dumps({"text": "A page about rivers, their springs and their mouths.", "source": "[web]"})
    Path("many").mkdir()
    Path("many/one.jsonl").write_text("\n".join([*lines, extra]) + "\n")
    Path("many/two.jsonl").write_text(extra + "\n")
    assert rationalyst("dedup --documents many --out unique") == 0
    out = capsys.readouterr().out
    assert re.search(r"\[web\] +2 +1 +50\.0 +1 ", out) and "exact duplicate" in out
    command = "decontaminate --documents unique/documents --out clean --against gsm8k=questions.jsonl"
    assert rationalyst(command) == 0
    out = capsys.readouterr().out
    assert re.search(r"gsm8k +4 +0 +1 +1 +0 ", out)
    assert "not looked for: math, math500," in out
    kept = Path("clean/documents/one.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in kept] == ["one-4"]


def test_mine_imports_annotated_text(capsys):
    assert rationalyst("mine --annotations annotations.jsonl --prompts world --out imported") == 0
    out = capsys.readouterr().out
    for name, number in {"documents": 3, "faithful": 2, "triples": 2, "document: changed": 1}.items():
        assert re.search(rf"{name} +│ +{number} ", out)
    triples = read_triples("imported/triples.parquet")
    assert [(t.document_id, t.rationale) for t in triples] == [("a", "add"), ("b", "done")]
    assert triples[1].following == "The answer is 7."


def test_mine_annotates_documents_and_keeps_what_is_done(capsys, monkeypatch):
    asked = []

    def submit(self, request):
        asked.append(request)
        handle = Handle(request, done=True, result=[Generation((1,), np.zeros(1), ANNOTATED, "stop")])
        self._finished.append(handle)
        return handle

    monkeypatch.setattr(Engine, "submit", submit)
    command = "mine --documents documents.jsonl --model model --prompts world --out mined"
    assert rationalyst(command) == 0
    out = capsys.readouterr().out
    assert "documents annotated: 3" in out and re.search(r"document: exact +│ +3 ", out)
    done = Path("mined/annotations.jsonl").read_bytes()
    triples = read_triples("mined/triples.parquet")
    assert [(t.document_id, t.rationale) for t in triples] == [("d0", "add"), ("d1", "add"), ("d2", "add")]
    assert rationalyst(command) == 0
    assert len(asked) == 3 and Path("mined/annotations.jsonl").read_bytes() == done
    assert rationalyst(command + " --annotate.temperature 0.5") == 1
    assert "annotate.temperature 1.0 -> 0.5" in capsys.readouterr().err
    assert Path("mined/annotations.jsonl").read_bytes() == done


def test_filter_scores_and_decides(capsys):
    options = (
        "--model model --prompts world --filter.row_length 128 --filter.rows_per_batch 1 --filter.tau 1e9"
    )
    assert rationalyst(f"filter --triples filtered.parquet {options} --out new/again.parquet") == 0
    again = read_filtered("new/again.parquet")
    assert len(again) == 4 and not any(t.kept for t in again) and {t.reason for t in again} == {"below_tau"}
    gain, guided, without = (
        pq.read_table("new/again.parquet")[name].to_numpy()
        for name in ("gain", "logprob_with", "logprob_without")
    )
    np.testing.assert_array_equal(gain, guided - without)
    out = capsys.readouterr().out
    assert re.search(r"reason: below_tau +│ +4 ", out) and "gain (nats), 50% quantile" in out
    assert re.search(r"source world, plain tau 1e\+09 +│ +0 of 4 kept ", out)


def test_thresholds_of_sources_that_are_not_there_are_refused(capsys):
    command = "filter --triples filtered.parquet --model model --prompts world --out other.parquet"
    assert rationalyst(f"{command} --filter.tau_by_source.gsm8k 1.2") == 1
    error = capsys.readouterr().err
    assert "filter: tau_by_source names gsm8k, but the sources in filtered.parquet are world" in error
    assert "--filter.tau_by_source {}" in error and not Path("other.parquet").exists()
    Path("sources.yaml").write_text("filter: {tau_by_source: {gsm8k: 1.2}}\n")
    assert rationalyst(f"{command} --config sources.yaml --filter.tau_by_source {{}}") == 0
    assert "source world, plain tau 0 " in capsys.readouterr().out


def test_a_threshold_of_a_source_that_is_not_there_is_told_of_beside_others(capsys):
    two = [replace(cli_files.triple("d", 0, 0.0), source=source) for source in ("world", "web")]
    two[1] = replace(two[1], document_id="e")
    write_filtered("two.parquet", two, Provenance("annotator", "world-1", {}))
    command = "filter --triples two.parquet --model model --prompts world --out told.parquet"
    assert rationalyst(f"{command} --filter.tau_by_source.world 0.5 --filter.tau_by_source.wrold 0.5") == 0
    out = capsys.readouterr().out
    assert "two.parquet has no source wrold, which tau_by_source names" in out
    assert "source world, own tau 0.5 " in out and "source web, plain tau 0 " in out


class Killed(Exception):
    """Stands for the end of the process: no command catches it."""


def test_killed_filtering_continues_and_leaves_its_result_alone(monkeypatch, capsys):
    command = (
        "filter --triples three.parquet --model model --prompts world --out {}/kept.parquet "
        "--filter.row_length 128 --filter.rows_per_batch 1 --filter.block 1"
    )
    triples = [cli_files.triple(document, 0, 0.0) for document in "def"]
    write_filtered("three.parquet", triples, Provenance("annotator", "world-1", {}))
    assert rationalyst(command.format("whole")) == 0
    score = likelihood_filter.score
    asked = []

    def dying(*arguments, **options):
        asked.append(arguments)
        if len(asked) == 3:  # the first block is written, the second was sent and is lost
            raise Killed
        return score(*arguments, **options)

    monkeypatch.setattr(likelihood_filter, "score", dying)
    with pytest.raises(Killed):
        rationalyst(command.format("killed"))
    assert rationalyst(command.format("killed") + " --filter.tau 1") == 1
    assert "other settings: filter.tau 0.0 -> 1.0" in capsys.readouterr().err
    assert rationalyst(command.format("killed")) == 0
    assert len(asked) == 3 + 2
    assert Path("killed/kept.parquet").read_bytes() == Path("whole/kept.parquet").read_bytes()
    assert [file.name for file in Path("killed").iterdir()] == ["kept.parquet"]


def test_calibrate_finds_the_smallest_tau_for_a_precision(capsys):
    # by gain: 3 good, 2 good, 1 not, -1 not
    assert rationalyst("calibrate --scored filtered.parquet --labels labels.jsonl --precision 0.6") == 0
    out = capsys.readouterr().out
    assert re.search(r"tau \(nats\) +│ +1 ", out) and re.search(r"kept +│ +3 of 4 labeled", out)
    assert re.search(r"precision +│ +0.6667 ", out) and re.search(r"recall +│ +1 ", out)


EVALUATE = "evaluate --task gsm8k --questions questions.jsonl --traces"


def test_evaluate_grades_and_compares(capsys):
    assert rationalyst(f"{EVALUATE} random.jsonl guided.jsonl") == 0
    shown = capsys.readouterr().out
    random, guided, difference = (
        line for line in shown.splitlines() if re.match(r" *(random|guided)\.jsonl ", line)
    )
    assert "25.0 [" in random and re.search(r"\] +4 +0 +0 *$", random)
    assert "75.0 [" in guided and re.search(r"\] +4 +1 +0 *$", guided)
    assert "+50.0 [" in difference and " 0.500 " in difference
    assert "answers to 4 questions; the split test of GSM8K has 1319" in shown
    assert rationalyst(f"{EVALUATE} short.jsonl --limit 2") == 0
    assert "100.0 [22.4, 100.0]" in capsys.readouterr().out
    assert rationalyst(f"{EVALUATE} random.jsonl short.jsonl --limit 2") == 0
    assert len(re.findall(r"\] +2 +0 +0 ", capsys.readouterr().out)) == 2


def test_score_is_additive_and_passes_other_keys_on(capsys):
    assert rationalyst("score --model model --pairs pairs.jsonl --out scores.jsonl") == 0
    whole, first, rest = (json.loads(line) for line in Path("scores.jsonl").read_text().splitlines())
    assert first["sum"] + rest["sum"] == pytest.approx(whole["sum"], abs=1e-4)
    assert first["tokens"] + rest["tokens"] == whole["tokens"]
    assert whole["mean"] == pytest.approx(sum(whole["logprobs"]) / len(whole["tokens"]))
    decayed = sum(0.9**t * logprob for t, logprob in enumerate(rest["logprobs"]))
    assert rest["decayed_sum"] == pytest.approx(decayed) and rest["name"] == "rest"
    assert re.search(r"pairs +│ +3 ", capsys.readouterr().out)


def test_killed_scoring_of_pairs_continues(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 2)
    command = "score --model model --pairs pairs.jsonl --out {}/scores.jsonl"
    assert rationalyst(command.format("whole_pairs")) == 0
    real = Engine.score
    asked = []

    def dying(self, requests, working):
        asked.append(requests)
        if len(asked) == 2:
            raise Killed
        return real(self, requests, working)

    monkeypatch.setattr(Engine, "score", dying)
    with pytest.raises(Killed):
        rationalyst(command.format("killed_pairs"))
    assert rationalyst(command.format("killed_pairs") + " --decay 0.5") == 1
    assert rationalyst(command.format("killed_pairs")) == 0
    assert [len(requests) for requests in asked] == [2, 1, 1]
    assert Path("killed_pairs/scores.jsonl").read_bytes() == Path("whole_pairs/scores.jsonl").read_bytes()
    assert [file.name for file in Path("killed_pairs").iterdir()] == ["scores.jsonl"]


def test_pairs_repaired_after_a_kill_are_scored_again_and_keep_all_their_keys(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 1)
    asked = []

    def dying(self, requests, working):
        asked.append(len(requests[0].continuation))
        if len(asked) == 3:
            raise Killed
        return [np.full(len(request.continuation), -0.5) for request in requests]

    monkeypatch.setattr(Engine, "score", dying)
    command = "score --model model --pairs own_keys.jsonl --out own_keys/scores.jsonl"

    def write(*continuations):
        keys = {"context": "", "pair": "x7", "number": 3, "sum": "of mine", "scores": None}
        rows = ({**keys, "continuation": text} for text in continuations)
        Path("own_keys.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("Ann", "Ann has", "Ann")
    with pytest.raises(Killed):
        rationalyst(command)
    write("Ann", "Ann has 3", "Ann has")
    assert rationalyst(command) == 0
    assert asked == [3, 4, 3, 5, 4]  # the first is kept
    rows = [json.loads(line) for line in Path("own_keys/scores.jsonl").read_text().splitlines()]
    assert [row["sum"] for row in rows] == [-1.5, -2.5, -2.0]
    assert all((row["pair"], row["number"], row["scores"]) == ("x7", 3, None) for row in rows)


def test_scores_that_were_lost_from_the_disk_are_missed(monkeypatch, capsys):
    monkeypatch.setattr(
        Engine, "score", lambda self, requests, working: [np.zeros(len(r.continuation)) for r in requests]
    )
    monkeypatch.setattr(scoring, "append_rows", lambda path, rows: path.write_bytes(b""))
    assert rationalyst("score --model model --pairs pairs.jsonl --out lost/scores.jsonl") == 1
    assert "lost/scores.jsonl.partial: holds 0 of 3 pairs" in capsys.readouterr().err
    assert not Path("lost/scores.jsonl").exists()


def test_stats_counts_shared_tokens(capsys):
    from transformers import AutoTokenizer

    assert rationalyst("stats --triples filtered.parquet --tokenizer model --prompts world") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    table = {row[1]: row[3::2] for row in rows}
    tokenizer = AutoTokenizer.from_pretrained("model")

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    triples = read_triples("filtered.parquet")
    guides = [f"<s>{t.preceding}<BOT>{t.rationale}<EOT>" for t in triples]
    tuning = [tokens(guide + "</s>") for guide in guides]
    filtering = [tokens(f"<s>{t.preceding}{t.following}") for t in triples]
    filtering += [tokens(guide + t.following) for guide, t in zip(guides, triples, strict=True)]
    for use, sequences in {"filter": filtering, "fine-tuning": tuning}.items():
        nodes = len({sequence[:n] for sequence in sequences for n in range(1, len(sequence) + 1)})
        apart = sum(map(len, sequences))
        assert table[use] == [str(len(sequences)), str(apart), str(nodes), f"{apart / nodes:.2f}"]


def test_world_writes_documents_and_questions():
    assert rationalyst("world documents --out world/documents.jsonl --count 5 --seed 3") == 0
    assert rationalyst("world questions --out world/questions.jsonl --count 4 --split longer") == 0
    documents = [json.loads(line) for line in Path("world/documents.jsonl").read_text().splitlines()]
    questions = [json.loads(line) for line in Path("world/questions.jsonl").read_text().splitlines()]
    assert [set(row) for row in documents] == [{"id", "text", "source"}] * 5
    assert [set(row) for row in questions] == [{"id", "question", "answer"}] * 4


def test_world_pretrain_passes_its_options_on(monkeypatch, capsys):
    from rationalyst_jax.pipeline import pretrain

    asked = []

    def no_pretraining(config, run_dir, progress, note):
        asked.append(config)
        raise ValueError("nothing trained")

    monkeypatch.setattr(pretrain, "pretrain", no_pretraining)
    assert rationalyst("world pretrain --run_dir x --texts 30 --train.steps 2 --mixture.plain 0.5") == 1
    assert capsys.readouterr().err == "rationalyst world pretrain: nothing trained\n"
    [config] = asked
    assert (config.texts, config.train.steps, config.mixture.plain) == (30, 2, 0.5)
    assert config.train.peak_learning_rate == 3e-3  # the recipe's own defaults stay


@pytest.fixture(scope="module")
def trained(files: Path) -> Path:
    """A run of `rationalyst train`."""
    options = "--train.steps 2 --train.batch_examples 2 --train.row_length 64 --train.microbatch_rows 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        command = "train --rationales filtered.parquet --model model --prompts world --run_dir run"
        assert rationalyst(f"{command} {options} --train.validation_fraction 0") == 0
    return files / "run"


def test_train_leaves_checkpoints_metrics_a_curve_and_a_model(trained):
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (trained / "hf" / name).is_file()
    assert (trained / "hf/model.safetensors").read_bytes() != Path("model/model.safetensors").read_bytes()


TRAIN = "train --rationales filtered.parquet --model model --prompts world --train.validation_fraction 0"
QUICK = "--train.batch_examples 2 --train.row_length 64 --train.microbatch_rows 1"


def test_training_for_no_step_gives_the_checkpoint_back_bit_for_bit():
    assert rationalyst("convert --source model --target orbax_bf16 --dtype bfloat16") == 0
    assert rationalyst("convert --source orbax_bf16 --target bf16 --tokenizer model") == 0
    command = TRAIN.replace("--model model", "--model bf16")
    assert rationalyst(f"{command} {QUICK} --run_dir none --train.steps 0") == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert Path("none/hf", name).read_bytes() == Path("bf16", name).read_bytes(), name
    assert json.loads(Path("none/hf/config.json").read_text()) == json.loads(
        Path("bf16/config.json").read_text()
    )


def test_adapters_are_exported_and_merged_into_the_model_that_training_leaves(capsys):
    lora = "--train.lora.rank 2 --train.lora.projections [q,down]"
    rounded = "--train.dtype bfloat16"  # the weights are stored in float32, and that is what both merge into
    assert rationalyst(f"{TRAIN} {QUICK} --run_dir adapted --train.steps 2 {lora} {rounded}") == 0
    assert {file.name for file in Path("adapted/adapters").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert rationalyst("merge --model model --adapters adapted/adapters --out merged --verify true") == 0
    assert Path("merged/certificate.json").is_file()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert Path("merged", name).read_bytes() == Path("adapted/hf", name).read_bytes(), name
    assert Path("merged/model.safetensors").read_bytes() != Path("model/model.safetensors").read_bytes()
    assert rationalyst("convert --source adapted --target nothing") == 1
    assert "adapted/checkpoints: holds adapters alone" in capsys.readouterr().err


def test_a_run_that_may_not_go_on_is_refused_and_another_config_listed(trained, capsys):
    again = f"{TRAIN} {QUICK} --run_dir run --train.steps 2"
    assert rationalyst(f"{again} --resume never") == 1
    assert "run/checkpoints: holds checkpoints, and resume is never" in capsys.readouterr().err
    assert rationalyst(f"{again} --train.peak_learning_rate 1 --train.lora.rank 4") == 1
    error = capsys.readouterr().err
    assert "train.peak_learning_rate 2e-05 -> 1.0" in error and "train.lora None -> {'rank': 4" in error
    assert error.count("\n") == 1
    assert rationalyst(f"{again} --train.microbatch_rows 2 --train.remat full --train.mesh.tensor 1") == 0


def test_a_trace_of_some_steps_is_left_where_it_is_asked_for():
    assert rationalyst(f"{TRAIN} {QUICK} --run_dir traced --train.steps 4 --profile 2") == 0
    assert list(Path("traced/profile").glob("**/*.xplane.pb"))


def test_convert_takes_the_model_out_of_a_training_run(trained, capsys):
    assert rationalyst("convert --source run --target run_hf --tokenizer model --verify true") == 0
    assert "read by rationalyst_jax" in capsys.readouterr().out and Path("run_hf/certificate.json").is_file()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert Path("run_hf", name).read_bytes() == (trained / "hf" / name).read_bytes()
    assert rationalyst("convert --source run --target run_bf16 --dtype bfloat16") == 0
    assert json.loads(Path("run_bf16/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert re.search(r"tokenizer files +│ +0 ", capsys.readouterr().out)


def test_reason_writes_a_trace_per_question_and_models_in_one_folder_share_an_engine(capsys, monkeypatch):
    engines = set()
    places = count()

    def submit(self, request):
        engines.add(self)
        handle = Handle(request, done=True)
        if isinstance(request, ScoreRequest):
            handle.result = np.array([float(next(places))])
        else:
            step = [Generation((1,), np.zeros(1), f"The answer is {i}.", "stop") for i in (5, 6)]
            handle.result = step[: request.n]
        self._finished.append(handle)
        return handle

    monkeypatch.setattr(Engine, "submit", submit)
    roles = "--agent model --rationalyst model --scorer ./model --reason.candidates 2"
    command = f"reason --task gsm8k --questions questions.jsonl {roles} --prompts world --out r/traces.jsonl"
    assert rationalyst(f"{command} --limit 1") == 0
    [trace] = read_traces(Path("r/traces.jsonl"))
    assert (trace.id, trace.answer, trace.strategy) == ("q0", "6", "implicit")
    assert len(engines) == 1
    out = capsys.readouterr().out
    assert re.search(r"questions +│ +1 ", out) and re.search(r"ended by: answer +│ +1 ", out)
    assert "no rating" not in out
    assert rationalyst(f"{command} --limit 1 --reason.seed 1") == 1
    assert "seed" in capsys.readouterr().err
    judged = command.replace("r/traces", "r/judged") + " --reason.strategy judge"
    assert rationalyst(f"{judged} --limit 1") == 0
    assert re.search(r"verdicts that are no rating +│ 2 of 2 ", capsys.readouterr().out)


def test_convert_to_orbax_and_back_gives_the_same_files():
    assert rationalyst("convert --source model --target orbax") == 0
    assert rationalyst("convert --source orbax --target back") == 0
    for file in Path("model").iterdir():
        assert Path("back", file.name).read_bytes() == file.read_bytes(), file.name
