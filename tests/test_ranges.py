"""Every number that a command takes has its range: absurd ones end in one line, before any work."""

import importlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_files import rationalyst

from rationalyst_jax.cli.main import COMMANDS, parser_of

# A command line that would do its work, were it not for the absurd number.
LINES = {
    "demo": "demo --run_dir x",
    "mine": "mine --documents documents.jsonl --model model --prompts world --out x",
    "filter": "filter --triples filtered.parquet --model model --prompts world --out x",
    "calibrate": "calibrate --scored filtered.parquet --labels labels.jsonl",
    "train": "train --rationales filtered.parquet --model model --prompts world --run_dir x",
    "plan": "plan --model llama3-8b --topology v5e:1x1",
    "reason": "reason --config random.yaml --questions questions.jsonl --agent model --out x",
    "serve": "serve --model model --port 0",
    "evaluate": "evaluate --task gsm8k --questions questions.jsonl --traces random.jsonl",
    "merge": "merge --model model --adapters nowhere --out x",
    "convert": "convert --source model --target x",
    "score": "score --model model --pairs pairs.jsonl --out x",
    "stats": "stats --triples filtered.parquet --tokenizer model --prompts world",
    "world documents": "world documents --out x --count 1",
    "world questions": "world questions --out x --count 1",
    "world pretrain": "world pretrain --run_dir x",
}
# Numbers that may be anything finite: a threshold is one.
FREE = {"filter.tau"}


def numeric_options() -> Iterator[tuple[str, str, str]]:
    """Command, option and an absurd value of each option that takes a number; a setting that several commands
    have is walked once."""
    seen = set()
    for name in COMMANDS:
        command = importlib.import_module(f"rationalyst_jax.cli.{name.replace(' ', '_')}")
        for action in parser_of(name, command)._actions:
            kind: Any = getattr(action, "_typehint", None) or action.type
            words = str(kind)
            if "Literal" in words or ("." in action.dest and action.dest in seen):
                continue
            seen.add(action.dest)
            if "int" in words or "float" in words:
                yield name, action.dest, "nan" if action.dest in FREE else "-1000000"


@pytest.mark.parametrize(("name", "option", "value"), [*numeric_options()])
def test_an_absurd_number_ends_in_one_line(name, option, value, files: Path, monkeypatch, capsys):
    monkeypatch.chdir(files)
    line = f"{LINES[name]} --{option}={value}"
    assert rationalyst(line) in (1, 2), line
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert option.rpartition(".")[2] in error, error


def test_every_command_is_walked():
    assert LINES.keys() == COMMANDS.keys()
    assert all(shlex.split(line)[0] == name.split()[0] for name, line in LINES.items())
