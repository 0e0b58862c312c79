"""Whatever is wrong with the input, a command says so in one line that names it, and fails."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cli_files import rationalyst

from rationalyst_jax.cli.main import COMMANDS


@pytest.fixture(autouse=True)
def here(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands write to `x`, if at all."""
    monkeypatch.chdir(files)
    yield
    shutil.rmtree("x", ignore_errors=True)


MODEL_COMMANDS = {
    "mine": "mine --documents documents.jsonl --prompts world --out x --model {}",
    "filter": "filter --triples filtered.parquet --prompts world --out x --model {}",
    "train": "train --rationales filtered.parquet --prompts world --run_dir x --model {}",
    "reason": "reason --config random.yaml --questions questions.jsonl --out x --agent {}",
    "locate": "locate --solutions solutions.jsonl --prompts world --out x --scorer {}",
    "score": "score --pairs pairs.jsonl --out x --model {}",
    "demo": "demo --run_dir x --model {}",
}
BAD_MODELS = {
    "nowhere": "nowhere: no such checkpoint folder",
    "folder": "folder/config.json: no such file",
    "misfit": "gate_proj.weight has shape",
    "small": "tokens, the model only 10",
    "unreadable": "unreadable: not a readable tokenizer",
}
REASON = "reason --task gsm8k --questions questions.jsonl --agent model --prompts world --out x"
RANDOM = f"{REASON} --config random.yaml"
FILTER = "filter --triples filtered.parquet --model model --prompts world --out x"
TRAIN = "train --rationales filtered.parquet --model model --prompts world --run_dir x"
SCORE = "score --model model --out x --pairs"
LOCATE = "locate --solutions solutions.jsonl --scorer model --prompts world --out x"
EVALUATE = "evaluate --task gsm8k --questions questions.jsonl --traces"
CALIBRATE = "calibrate --scored filtered.parquet --labels"
PREFILTER = "prefilter --documents documents.jsonl --encoder encoder --out x --references"
DEDUP = "dedup --out x --documents"
DECONTAMINATE = "decontaminate --documents documents.jsonl --out x --against"
REPORT = "report --task gsm8k --questions questions.jsonl --out x --traces"
BAD_INPUT = {
    "report --run nowhere": "nowhere/summary.json: no such file",
    "report --run folder": "folder/summary.json: no such file",
    f"{REPORT} nowhere.jsonl": "nowhere.jsonl: No such file",
    f"{REPORT} short.jsonl": "2 ids are only in the questions",
    f"{REPORT} pairs.jsonl": "pairs.jsonl:1: ",
    "show --id q0 --traces nowhere.jsonl": "nowhere.jsonl: No such file",
    "show --id q9 --traces random.jsonl": "random.jsonl: has no trace of question 'q9'",
    "show --id q0 --traces random.jsonl --task gsm8k --questions train.jsonl": "has no question 'q0'",
    f"{PREFILTER} gsm8k=nowhere.jsonl": "nowhere.jsonl: No such file",
    f"{PREFILTER} gsm9k=train.jsonl": "unknown task 'gsm9k'",
    f"{PREFILTER} gsm8k=questions.jsonl": "questions.jsonl:1: neither the row nor the file's name says which",
    f"{PREFILTER} gsm8k=test=train.jsonl": "questions of gsm8k's split 'test': references are of train alone",
    f"{PREFILTER} gsm8k=tfds:gsm8k:test@folder": "questions of gsm8k's split 'test': references are of train",
    f"{PREFILTER} gsm8k=tfds:gsm8k@folder": "tfds:gsm8k: no prepared set in folder",
    f"{PREFILTER} gsm8k=train=no_answer.jsonl": "no_answer.jsonl:1: 'answer' must end in",
    f"{PREFILTER} gsm8k=train.jsonl --prefilter.window 129": "prefilter: window is 129, the encoder has 128",
    f"{PREFILTER} gsm8k=train.jsonl --encoder nowhere": "nowhere: no such folder of an encoder",
    f"{PREFILTER} gsm8k=train.jsonl --encoder folder": "folder/config.json: no such file",
    f"{PREFILTER} gsm8k=train.jsonl --encoder model": "config.json: model_type 'llama' is not supported",
    f"{PREFILTER} gsm8k=train.jsonl --documents nowhere.jsonl": "nowhere.jsonl: No such file",
    f"{PREFILTER} gsm8k=train.jsonl --documents text.jsonl": "text.jsonl:1: not JSON",
    f"{PREFILTER} gsm8k=train.jsonl --documents pairs.jsonl": "pairs.jsonl:1: no 'text'",
    f"{PREFILTER} gsm8k=train.jsonl --documents folder": "folder/something: a folder of rows holds",
    f"{PREFILTER} gsm8k=train.jsonl --out text.jsonl": "text.jsonl: File exists",
    "card --rationales nowhere.parquet --out x": "nowhere.parquet: no such file of rationales",
    "card --rationales text.jsonl --out x": "text.jsonl: not Parquet",
    "card --rationales folder --out x": "folder: no Parquet file in this folder",
    "card --rationales filtered.parquet --out folder": "folder: exists already; give a new folder",
    "card --rationales filtered.parquet --out x --dedup folder": "folder/dedup.json: no such file",
    f"{DEDUP} nowhere": "nowhere: no such file of documents, nor a folder of them",
    f"{DEDUP} folder": "folder/something: a folder of rows holds files that end in",
    f"{DEDUP} text.jsonl": "text.jsonl:1: not JSON",
    f"{DEDUP} pairs.jsonl": "pairs.jsonl:1: no 'text'",
    f"{DEDUP} documents.jsonl".replace("x", "text.jsonl"): "text.jsonl: File exists",
    f"{DECONTAMINATE} gsm8k=nowhere.jsonl": "nowhere.jsonl: No such file",
    f"{DECONTAMINATE} gsm9k=questions.jsonl": "unknown task 'gsm9k'",
    f"{DECONTAMINATE} gsm8k=no_answer.jsonl": "no_answer.jsonl:1: 'answer' must end in",
    f"{DECONTAMINATE} gsm8k=tfds:rationalyst_gsm8k@folder": "tfds:rationalyst_gsm8k: no prepared set in",
    f"{DECONTAMINATE} gsm8k=questions.jsonl".replace("documents.jsonl", "pairs.jsonl"): "pairs.jsonl:1: no",
    "mine --documents nowhere.jsonl --model model --prompts world --out x": "nowhere.jsonl: No such file",
    "mine --documents text.jsonl --model model --prompts world --out x": "text.jsonl:1: not JSON",
    "mine --documents pairs.jsonl --model model --prompts world --out x": "pairs.jsonl:1: no 'text'",
    "mine --annotations nowhere.jsonl --prompts world --out x": "nowhere.jsonl: No such file",
    "mine --annotations documents.jsonl --prompts world --out x": "documents.jsonl:1: no 'input'",
    "mine --annotations annotations.jsonl --prompts wurld --out x": "no prompts named 'wurld'",
    "mine --annotations annotations.jsonl --prompts wurld.yaml --out x": "wurld.yaml: no such prompt file",
    "mine --annotations annotations.jsonl --prompts world --out text.jsonl": "text.jsonl: File exists",
    "filter --triples nowhere.parquet --model model --prompts world --out x": "nowhere.parquet: no such file",
    "filter --triples text.jsonl --model model --prompts world --out x": "text.jsonl:1: not JSON",
    "filter --triples filtered.parquet --model model --prompts wurld --out x": "no prompts named 'wurld'",
    f"{FILTER} --filter.suppress [nonsense]": "suppress: 'nonsense' is",
    "inspect --rationales text.jsonl --out x": "text.jsonl:1: not JSON",
    "inspect --rationales filtered.parquet --human text.jsonl --out x": "text.jsonl:1: not JSON",
    "inspect --rationales filtered.parquet --model nowhere --prompts world --out x": "nowhere: no such",
    f"{CALIBRATE} nowhere.jsonl": "nowhere.jsonl: No such file",
    f"{CALIBRATE} text.jsonl": "text.jsonl:1: not JSON",
    f"{CALIBRATE} no_such_label.jsonl": "no_such_label.jsonl:1: filtered.parquet has no rationale 9 of",
    f"{CALIBRATE} bad_label.jsonl": "bad_label.jsonl:1: 'good' must be true or false, found 'yes'",
    f"{CALIBRATE} none_good.jsonl": "none of 1 labeled rationales is good",
    "calibrate --scored nowhere.parquet --labels labels.jsonl": "nowhere.parquet: no such file",
    TRAIN.replace("filtered", "nowhere"): "nowhere.parquet: no such file",
    TRAIN.replace("filtered.parquet", "text.jsonl"): "text.jsonl:1: not JSON",
    TRAIN.replace("filtered", "none_kept"): "none_kept.parquet: no kept",
    f"{TRAIN} --train.row_length 4": "no example to train on (4 longer than 4 tokens)",
    TRAIN.replace("model model", "model no_template"): "tokenizer of no_template has no chat template",
    TRAIN.replace("filtered", "number"): "number.parquet: row 1: column preceding must be text, found 3",
    FILTER.replace("filtered", "number"): "number.parquet: column preceding holds int64, not string",
    f"{TRAIN} --train.mesh.tensor 3": "mesh: replica 1, fsdp -1, tensor 3 do not divide 8 devices",
    f"{TRAIN} --train.mesh.fsdp 1 --train.mesh.tensor 8": "layers.k_DKH: 1 kv_heads among 8 of tensor",
    f"{FILTER} --mesh.fsdp 3": "mesh: replica 1, fsdp 3, tensor 1 do not divide 8 devices",
    "merge --model model --adapters nowhere --out x": "nowhere/adapter_config.json: no such file",
    "merge --model model --adapters folder --out folder": "folder: exists already; give a new folder",
    RANDOM.replace("questions.jsonl", "no_answer.jsonl"): "no_answer.jsonl:1: 'answer' must end in",
    RANDOM.replace("questions.jsonl", "nowhere.jsonl"): "nowhere.jsonl: No such file",
    f"{REASON} --reason.strategy guess": "no strategy 'guess'",
    REASON: "strategy 'implicit' by implicit needs a rationalyst",
    f"{REASON} --rationalyst nowhere": "nowhere: no such checkpoint folder",
    f"{REASON} --rationalyst http://127.0.0.1:9/v1": "endpoint.model is missing: which model shall be asked",
    LOCATE.replace("solutions.jsonl", "nowhere.jsonl"): "nowhere.jsonl: No such file",
    LOCATE.replace("solutions.jsonl", "no_such_step.jsonl"): "no_such_step.jsonl:1: 'label' must be one of 2",
    LOCATE.replace("solutions.jsonl", "questions.jsonl"): "questions.jsonl:1: 'steps' must be a list",
    LOCATE.replace("--out x", "--out folder"): "folder: is a folder, a file is to be written",
    f"{LOCATE} --rationalyst nowhere": "nowhere: no such checkpoint folder",
    f"{LOCATE} --limit 1 --rationalyst model": "rationales are compared with those of other problems",
    f"{LOCATE} --locate.suppress [nonsense]": "suppress: 'nonsense' is",
    "serve --model nowhere --port 0": "nowhere: no such checkpoint folder",
    "serve --model model --host 203.0.113.1": "serve: 203.0.113.1:8000: ",
    "serve --model model --port 70000": "serve: port must be from 0 to 65535, got 70000",
    "serve --model model --port 0 --seed -1": "serve: seed must be at least 0, got -1",
    "score --pairs pairs.jsonl --out x --model model --engine.tensor 99": "engine: tensor is 99, there are",
    "serve --model model --port 0 --api_key_from NO_SUCH_KEY": "variable NO_SUCH_KEY holds no key",
    FILTER.replace("--out x", "--out folder"): "folder: is a folder, a file is to be written",
    RANDOM.replace("--out x", "--out folder"): "folder: is a folder, a file is to be written",
    f"{SCORE} pairs.jsonl".replace("x", "folder"): "folder: is a folder, a file is to be written",
    f"{SCORE} pairs.jsonl --decay 2": "decay must be above 0 and at most 1, got 2.0",
    f"{SCORE} long.jsonl": "long.jsonl:2: ",
    "mine --annotations annotations.jsonl --prompts world --out x --min_similarity 90": "min_similarity must",
    f"{CALIBRATE} labels.jsonl --precision -1": "precision must be above 0 and at most 1, got -1",
    f"{EVALUATE} nowhere.jsonl": "nowhere.jsonl: No such file",
    f"{EVALUATE} text.jsonl": "text.jsonl:1: not JSON",
    f"{EVALUATE} short.jsonl": "2 ids are only in the questions, as 'q2'",
    f"{EVALUATE} short.jsonl --limit 3": "1 ids are only in the questions, as 'q2'",
    "convert --source nowhere --target x": "nowhere: no such checkpoint folder",
    "convert --source model --target folder": "folder: exists already",
    "convert --source misfit --target x": "gate_proj.weight has shape",
    "convert --source folder --target x": "folder/config.json: no such file",
    "convert --source empty_run --target x": "empty_run/checkpoints: no finished checkpoint",
    "convert --source model --target x --tokenizer folder": "folder: no tokenizer.json",
    "convert --source empty_run --target x --verify true": "empty_run: no tokenizer.json, which",
    "score --model model --pairs nowhere.jsonl --out x": "nowhere.jsonl: No such file",
    "score --model model --pairs text.jsonl --out x": "text.jsonl:1: not JSON",
    "score --model model --pairs documents.jsonl --out x": "documents.jsonl:1: no 'context'",
    "score --model model --pairs no_continuation.jsonl --out x": "no_continuation.jsonl:2: 'continuation'",
    "stats --triples nowhere.parquet --tokenizer model --prompts world": "nowhere.parquet: no such file",
    "stats --triples filtered.parquet --tokenizer folder --prompts world": "folder: no tokenizer.json",
    "stats --triples filtered.parquet --tokenizer model --prompts wurld": "no prompts named 'wurld'",
    "stats --annotations text.jsonl --tokenizer model --prompts world": "text.jsonl:1: not JSON",
    "world documents --out text.jsonl/x --count 1": "text.jsonl",
    "world questions --out x --count 1 --split nope": "unknown question set 'nope'",
    "demo --model nowhere --run_dir x": "nowhere: no such checkpoint folder",
    "demo --world null --run_dir x": "either documents (and questions) or world",
    "demo --prompts wurld --run_dir x": "no prompts named 'wurld'",
}
BAD_USAGE = {
    f"{PREFILTER} train.jsonl": "--references takes TASK=FILE, got 'train.jsonl'",
    f"{PREFILTER} gsm8k=train.jsonl gsm8k=train.jsonl": "--references names gsm8k twice",
    f"{PREFILTER} gsm8k=train.jsonl --prefilter.recall 0": "prefilter: recall must be above 0 and at most 1",
    f"{PREFILTER} gsm8k=train.jsonl --prefilter.alpha 2": "prefilter: alpha must be between -1 and 1, got 2",
    f"{PREFILTER} gsm8k=train.jsonl --prefilter.normalisation own": "--prefilter.normalisation: Expected",
    f"{DECONTAMINATE} questions.jsonl": "--against takes TASK=FILE, got 'questions.jsonl'",
    f"{DECONTAMINATE} gsm8k=a.jsonl gsm8k=b.jsonl": "--against names gsm8k twice",
    f"{DECONTAMINATE} gsm8k=questions.jsonl --decontaminate.min_words 20": "min_words must be at most ngram",
    f"{DEDUP} documents.jsonl --dedup.similarity 75": "dedup: similarity must be above 0 and at most 1",
    "decontaminate --documents documents.jsonl --out x": "against",
    "report": "give --run, or --task, --questions and --traces",
    "report --run folder --task gsm8k": "--run knows its own task",
    "show --id q0 --traces random.jsonl --task gsm8k": "--task and --questions go together",
    "show --id q0 --traces random.jsonl random.jsonl": "--traces has random.jsonl twice",
    "report --task gsm8k --questions x --traces a b a": "--traces has a twice",
    "": "a command is missing",
    "mime --out x": "no command 'mime'",
    "world domination": "no command 'world domination'",
    "mine --prompts world --out x": "either --documents or --annotations",
    "mine --prompts world --out x --documents documents.jsonl": "--documents needs a --model",
    "serve --model model --engine.max_sequences 0": "engine: max_sequences must be at least 1, got 0",
    "mine --prompts world --out x --annotate.block 0": "annotate: block must be at least 1, got 0",
    f"{FILTER} --filter.decay 0": "filter: decay must be above 0 and at most 1, got 0",
    f"{FILTER} --filter.keep some": "--filter.keep: Expected",
    f"{FILTER} --filter.tau high": "--filter.tau: Expected a float. Got value: high",
    f"{TRAIN} --train.steps -1": "train config: steps must be at least 0, got -1",
    f"{TRAIN} --train.mesh.fsdp -1 --train.mesh.tensor -1": "mesh: only one axis can be -1",
    f"{TRAIN} --train.lora.rank 0": "lora: rank must be at least 1, got 0",
    f"{TRAIN} --distributed.processes 2": "distributed: coordinator, processes, process go together, missing",
    f"{TRAIN} --train.steps few": "--train.steps: Expected a int Given value: few",
    f"{REASON} --limit 0": "--limit: ",
    f"{LOCATE} --task gsm8k": "--task: Expected",
    RANDOM.replace("gsm8k", "gsm9k"): "--task: Expected one of 'gsm8k', 'math', ",
    "evaluate --task gsm9k --questions questions.jsonl --traces random.jsonl": "Got value: gsm9k",
    "data --task gsm9k --from questions.jsonl --out x": "'rationales'. Got value: gsm9k",
    "choose --task gsm9k --questions questions.jsonl --model model --out x": "--task: Expected one of",
    f"{LOCATE} --locate.decay 0": "locate: decay must be above 0 and at most 1, got 0",
    f"{REASON} --reason.candidates 0": "reason: candidates must be at least 1, got 0",
    "evaluate --task gsm8k --questions questions.jsonl": "required: traces",
    "convert --source model --target x --dtype float8": "--dtype: Expected",
    "convert --source model --target x --verify true": "--verify is for Hugging Face checkpoints; ",
    "stats --tokenizer model --prompts world": "either --annotations or --triples",
    "world documents --out x --count 0": "--count: ",
    "world pretrain --run_dir x --train.warmup_fraction 2": "warmup_fraction must be between 0 and 1",
    "demo --config nowhere.yaml": "nowhere.yaml",
    TRAIN.replace(" x", " gs://bucket/run"): "--run_dir: gs://bucket/run is not a path: mount",
    TRAIN.replace("model model", "model s3://b/m"): "--model: s3://b/m is not a path: mount",
    f"{TRAIN} --config gs://bucket/train.yaml": "--config: gs://bucket/train.yaml is not a path: mount",
    f"{DECONTAMINATE} gsm8k=random.jsonl arc=https://host/arc": "--against: https://host/arc is not a path",
    "mine --prompts world --out x --model http://h/v1 --documents hf://d": "--documents: hf://d is",
    "benchmark --config paper --checkpoints.llama3-8b.agent gs://b": "--checkpoints.llama3-8b.agent: gs:",
    """benchmark --config paper --tasks '{"arc": {"question": "x"}}'""": "--tasks: Option 'question' is not",
}


def assert_one_line(capsys: pytest.CaptureFixture[str], code: int, expected: int, needle: str) -> None:
    error = capsys.readouterr().err
    assert code == expected, error
    assert error.count("\n") == 1 and needle in error
    assert "rationalyst_jax." not in error  # a user needs no name of a class


@pytest.mark.parametrize("model", BAD_MODELS)
@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_a_checkpoint_that_does_not_fit_is_said_in_one_line(command, model, capsys):
    code = rationalyst(MODEL_COMMANDS[command].format(model))
    assert_one_line(capsys, code, 1, BAD_MODELS[model])


@pytest.mark.parametrize("command", BAD_INPUT)
def test_bad_input_gets_one_line(command, capsys):
    assert_one_line(capsys, rationalyst(command), 1, BAD_INPUT[command])


@pytest.mark.parametrize("command", BAD_USAGE)
def test_bad_usage_gets_one_line(command, capsys):
    assert_one_line(capsys, rationalyst(command), 2, BAD_USAGE[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_options_and_keys_get_one_line(command, capsys):
    assert_one_line(capsys, rationalyst(f"{command} --nonsense 1"), 2, "nonsense")
    assert_one_line(capsys, rationalyst(f"{command} --config unknown_key.yaml"), 2, "unknown_key.yaml: ")
    assert_one_line(capsys, rationalyst(f"{command} --config not.yaml"), 2, "not.yaml: ")
    assert_one_line(capsys, rationalyst(f"{command} --config"), 2, "--config")


def test_an_address_in_a_config_is_no_path_either(capsys, tmp_path):
    config = tmp_path / "mounted.yaml"
    config.write_text("prompts: world\nrun_dir: s3://bucket/run\n")
    command = f"{TRAIN.replace(' --run_dir x', '')} --config {config}"
    assert_one_line(capsys, rationalyst(command), 2, "--run_dir: s3://bucket/run is not a path: mount")
    assert not Path("s3:").exists()


def test_libraries_add_no_line_of_their_own():
    command = "score --model strange --pairs pairs.jsonl --out x"  # transformers would warn about its config
    program = [sys.executable, "-m", "rationalyst_jax.cli.main", *command.split()]
    run = subprocess.run(program, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.count("\n") == 1, run.stderr
    assert "token id 99999 is outside" in run.stderr


def test_a_terminal_of_few_characters_is_no_error():
    command = "stats --triples filtered.parquet --tokenizer model --prompts world"
    program = [sys.executable, "-m", "rationalyst_jax.cli.main", *command.split()]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(program, capture_output=True, env=environment)
    assert run.returncode == 0 and b"fine-tuning" in run.stdout, run.stderr


@pytest.mark.parametrize(
    "during", ["cli.main.importlib.import_module", "cli.main._parse", "mine.store.read_triples"]
)
def test_ctrl_c_ends_in_one_line_while_importing_parsing_or_at_work(during, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"rationalyst_jax.{during}", interrupted)
    assert rationalyst("stats --triples filtered.parquet --tokenizer model --prompts world") == 130
    assert capsys.readouterr().err == "rationalyst stats: interrupted\n"


@pytest.mark.parametrize(
    "during", ["cli.main.importlib.import_module", "cli.main._parse", "mine.store.read_triples"]
)
def test_sigterm_ends_in_one_line_that_says_what_to_do(during, monkeypatch, capsys):
    def stopped(*arguments):
        with suppress(Exception):  # as work does that goes on after an error
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(f"rationalyst_jax.{during}", stopped)
    assert rationalyst("stats --triples filtered.parquet --tokenizer model --prompts world") == 75
    said = "stopped by SIGTERM; the same command goes on from here"
    assert capsys.readouterr().err == f"rationalyst stats: {said}\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_scoring_needs_no_chat_template():
    assert rationalyst("score --model no_template --pairs pairs.jsonl --out x/scores.jsonl") == 0


def test_a_run_that_left_no_work_binds_nobody(capsys):
    too_long = f"{TRAIN} --train.row_length"
    assert_one_line(capsys, rationalyst(f"{too_long} 4"), 1, "4 longer than 4 tokens")
    assert_one_line(capsys, rationalyst(f"{too_long} 5"), 1, "4 longer than 5 tokens")
