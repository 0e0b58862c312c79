"""Two real processes on one output: the second is refused in one line, whatever the command."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from cli_files import rationalyst

from rationalyst_jax.files.lock import locked

# A command, where in it the first process stops (and stays), and the output that it holds by then.
COMMANDS = {
    "prefilter": (
        "prefilter --documents documents.jsonl --encoder encoder --references gsm8k=train.jsonl --out {} "
        "--prefilter.workers 0",
        "mine.prefilter.append_rows",
        "scores.partial.jsonl",
    ),
    "mine": (
        "mine --documents documents.jsonl --model model --prompts world --out {}",
        "lm.engine.engine.Engine.step",
        "annotations.jsonl",
    ),
    "filter": (
        "filter --triples filtered.parquet --model model --prompts world --out {}/kept.parquet",
        "mine.likelihood_filter.append_rows",
        "kept.parquet.scores.jsonl",
    ),
    "inspect": (
        "inspect --rationales filtered.parquet --model model --prompts world --out {}/faults.jsonl",
        "mine.likelihood_filter.append_rows",
        "faults.jsonl.scores.jsonl",
    ),
    "score": (
        "score --pairs pairs.jsonl --model model --out {}/scores.jsonl",
        "lm.engine.engine.Engine.step",
        "scores.jsonl.partial",
    ),
    "reason": (
        "reason --config random.yaml --questions questions.jsonl --agent model --out {}/traces.jsonl",
        "lm.engine.engine.Engine.step",
        "traces.jsonl",
    ),
    "locate": (
        "locate --solutions solutions.jsonl --scorer model --prompts world --out {}/steps.jsonl",
        "lm.engine.engine.Engine.step",
        "steps.jsonl",
    ),
    "train": (
        "train --rationales filtered.parquet --model model --prompts world --train.row_length 64 "
        "--train.validation_fraction 0 --run_dir {}",
        "train.loop.begin",
        "checkpoints",
    ),
    "demo": ("demo --run_dir {}", "lm.engine.engine.Engine.step", "stages"),
    "world pretrain": (
        "world pretrain --texts 50 --train.steps 1 --run_dir {}",
        "train.loop.begin",
        "checkpoints",
    ),
}
# Imports once what all commands need, then becomes a process for each of them, which stays where it is told.
HOLDING = """
import importlib, json, os, shlex, sys, time
from rationalyst_jax.cli.main import main
import rationalyst_jax.pipeline.experiment, rationalyst_jax.pipeline.pretrain

def stay(*arguments, **options):
    os.write(1, f"{json.dumps([name, os.getpid()])}\\n".encode())
    time.sleep(3600)

def found(path):
    for place in range(len(path), 0, -1):
        try:
            holder = importlib.import_module(".".join(["rationalyst_jax", *path[:place]]))
        except ModuleNotFoundError:
            continue
        for attribute in path[place:]:
            holder = getattr(holder, attribute)
        return holder

for name, (command, where) in json.loads(sys.argv[1]).items():
    if not os.fork():
        *path, attribute = where.split(".")
        setattr(found(path), attribute, stay)
        sys.exit(main(shlex.split(command)))
while True:
    os.wait()
"""


def folder_of(name: str) -> str:
    return f"locked_{name.split()[0]}"


@pytest.fixture(scope="module")
def at_work(files: Path) -> Iterator[dict[str, int]]:
    """The process that is at work on each command, by the command's name."""
    commands = {
        name: (command.format(folder_of(name)), where) for name, (command, where, _) in COMMANDS.items()
    }
    arguments = [sys.executable, "-c", HOLDING, json.dumps(commands)]
    holders = subprocess.Popen(
        arguments, cwd=files, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert holders.stdout is not None
        begun = (json.loads(line) for line in holders.stdout if line.startswith('["'))
        yield dict(islice(begun, len(COMMANDS)))
    finally:
        os.killpg(holders.pid, signal.SIGKILL)
        holders.communicate()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_run_is_refused_and_names_file_and_process(name, at_work, files, monkeypatch, capsys):
    command, _, output = COMMANDS[name]
    monkeypatch.chdir(files)
    folder = folder_of(name)
    assert rationalyst(command.format(folder)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{folder}/{output}: process {at_work[name]} is writing it" in error


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("mine --documents documents.jsonl --model model --prompts world --out {}", "triples.parquet"),
        ("mine --annotations annotations.jsonl --prompts world --out {}", "triples.parquet"),
        ("merge --model model --adapters adapters --out {}/hf", "hf"),
        ("convert --source model --target {}/orbax", "orbax"),
        ("dedup --documents documents.jsonl --out {}", "done"),
        ("decontaminate --documents documents.jsonl --against gsm8k=questions.jsonl --out {}", "done"),
        ("card --rationales filtered.parquet --out {}/set", "set"),
        ("world documents --count 3 --out {}/documents.jsonl", "documents.jsonl"),
        ("inspect --rationales filtered.parquet --out {}/faults.jsonl", "faults.jsonl"),
        ("world questions --count 3 --out {}/questions.jsonl", "questions.jsonl"),
        ("world errors --count 3 --out {}/errors.jsonl", "errors.jsonl"),
    ],
)
def test_what_a_command_writes_at_once_is_locked_too(command, output, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(files)
    with locked(tmp_path / output):
        assert rationalyst(command.format(tmp_path)) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / output}: process {os.getpid()} is writing it" in error and error.count("\n") == 1
    assert not (tmp_path / output).exists()
