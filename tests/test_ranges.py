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
    "ablate": "ablate --run_dir x",
    "mine": "mine --documents documents.jsonl --model model --prompts world --out x",
    "filter": "filter --triples filtered.parquet --model model --prompts world --out x",
    "mine run": "mine run --documents documents.jsonl --model model --prompts world --run_dir x",
    "mine status": "mine status --run_dir x",
    "prefilter": "prefilter --documents documents.jsonl --encoder encoder --references gsm8k=x --out x",
    "dedup": "dedup --documents documents.jsonl --out x",
    "decontaminate": "decontaminate --documents documents.jsonl --against gsm8k=x --out x",
    "card": "card --rationales filtered.parquet --out x",
    "inspect": "inspect --rationales filtered.parquet --model model --prompts world --out x",
    "calibrate": "calibrate --scored filtered.parquet --labels labels.jsonl",
    "train": "train --rationales filtered.parquet --model model --prompts world --run_dir x",
    "plan": "plan --model llama3-8b --topology v5e:1x1",
    "reason": "reason --config random.yaml --questions questions.jsonl --agent model --out x",
    "serve": "serve --model model --port 0",
    "locate": "locate --solutions solutions.jsonl --scorer model --prompts world --out x",
    "data": "data --task gsm8k --from test=questions.jsonl --out x",
    "benchmark": "benchmark --config paper",
    "choose": "choose --task arc --questions questions.jsonl --model model --out x",
    "report": "report --run x",
    "show": "show --traces random.jsonl --id x",
    "evaluate": "evaluate --task gsm8k --questions questions.jsonl --traces random.jsonl",
    "merge": "merge --model model --adapters nowhere --out x",
    "convert": "convert --source model --target x",
    "score": "score --model model --pairs pairs.jsonl --out x",
    "stats": "stats --triples filtered.parquet --tokenizer model --prompts world",
    "world documents": "world documents --out x --count 1",
    "world questions": "world questions --out x --count 1",
    "world errors": "world errors --out x --count 1",
    "world pretrain": "world pretrain --run_dir x",
}
ABSURD = {"low": -(10**6), "huge": 10**30, "no number": ".nan", "infinite": ".inf"}
# What is taken all the same: a threshold may be anything finite, a temperature or a weight anything large.
# One may wait for ever. Else what is there settles it: so many questions or fewer, the chips of a plan.
TAKEN = {
    "low": {"filter.tau"},
    "infinite": {"endpoint.timeout", "train.clip_norm"},
    "huge": {
        *("filter.tau", "endpoint.timeout", "annotate.length_factor"),
        *("annotate.temperature", "reason.temperature", "reason.rationale_temperature"),
        *("train.clip_norm", "train.epochs", "train.peak_learning_rate", "train.eps", "train.weight_decay"),
        *("mixture.plain", "mixture.inline", "mixture.annotation"),
        *("plan slices", "plan mesh.replica", "plan mesh.fsdp", "plan mesh.tensor", "plan chips"),
        "plan hours",
        "assume.rationale_tokens",
        *(
            "profile",
            "limit",
            "count",
            "world documents seed",
            "world questions seed",
            "world errors seed",
            "serve seed",
        ),
    },
}


def numeric_options() -> Iterator[tuple[str, str]]:
    """Command and option of each option that takes a number; a setting that several commands have is walked
    once."""
    seen = set()
    for name, parser in PARSERS.items():
        for action in parser._actions:
            kind: Any = getattr(action, "_typehint", None) or action.type
            words = str(kind).lower()
            if "literal" in words or ("." in action.dest and action.dest in seen):
                continue
            seen.add(action.dest)
            if "int" in words or "float" in words:
                yield name, action.dest


PARSERS = {
    name: parser_of(name, importlib.import_module(f"rationalyst_jax.cli.{name.replace(' ', '_')}"))
    for name in COMMANDS
}


@pytest.mark.parametrize(("name", "option"), [*numeric_options()])
def test_an_absurd_number_ends_in_one_line(name, option, files: Path, monkeypatch, capsys):
    monkeypatch.chdir(files)
    # Parsers are made once.
    monkeypatch.setattr("rationalyst_jax.cli.main.parser_of", lambda name, command: PARSERS[name])
    before = {*files.rglob("*")}
    for what, value in ABSURD.items():
        line = f"{LINES[name]} --{option}={value}"
        if {option, f"{name} {option}"} & TAKEN.get(what, set()):
            assert rationalyst(f"{line} --print_config") == 0, line
            continue
        capsys.readouterr()
        assert rationalyst(line) in (1, 2), line
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert option.rpartition(".")[2] in error, error
        assert {*files.rglob("*")} == before, line


def test_every_command_is_walked():
    assert LINES.keys() == COMMANDS.keys()
    assert all(shlex.split(line)[0] == name.split()[0] for name, line in LINES.items())
