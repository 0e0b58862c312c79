"""An experiment gives what the separate commands give, byte for byte; engines make room for training."""

import json
from dataclasses import asdict
from pathlib import Path

import jax
import pytest
import yaml
from cli_files import rationalyst
from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.pipeline import train as training
from rationalyst_jax.pipeline.config import ExperimentConfig, Rationalyst, Run, WorldData
from rationalyst_jax.pipeline.experiment import run
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.world.checkpoint import SHIPPED


def experiment_in(run_dir: Path) -> ExperimentConfig:
    """Adapters, and engines over two of the simulated devices."""
    return ExperimentConfig(
        run_dir=str(run_dir),
        model="world",
        prompts="world",
        world=WorldData(documents=8, questions=2),
        engine=EngineConfig(tensor=2, max_sequences=8),
        annotate=AnnotateConfig(length_margin=80),
        filter=FilterConfig(tau=0.0, suppress=("<BOT>",), row_length=512, rows_per_batch=1),
        train=TrainConfig(
            steps=2, batch_examples=4, row_length=320, microbatch_rows=1, lora=LoraConfig(rank=2)
        ),
        reason=ReasonConfig(max_steps=3, max_step_tokens=16, max_rationale_tokens=16, suppress=("<BOT>",)),
        rationalysts={"rationalyst": Rationalyst()},
        strategies={"implicit": Run("implicit", rationalyst="rationalyst")},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[int]]:
    """An experiment's folder, and how many bytes of arrays were alive when each training began."""
    run_dir = tmp_path_factory.mktemp("experiment")
    alive = []
    fit = training.fit

    def counting(*arguments, **options):
        alive.append(sum(array.nbytes for array in jax.live_arrays()))
        return fit(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit", counting)
        run(experiment_in(run_dir), full=False, console=Console(quiet=True))
    return run_dir, alive


def traces(path: Path) -> list[dict]:
    """The rows of a file of traces, without the seconds."""
    return [{**json.loads(line), "seconds": None} for line in path.read_text().splitlines()]


def test_an_experiment_gives_what_the_commands_give(finished, tmp_path):
    run_dir, _ = finished
    config = asdict(experiment_in(run_dir))
    settings = {name: config[name] for name in ("annotate", "engine", "filter", "train", "reason")}
    settings["filter"] = {**settings["filter"], "suppress": list(settings["filter"]["suppress"])}
    for name, groups in {
        "mine": ("annotate", "engine"),
        "filter": ("filter",),
        "train": ("train",),
        "reason": ("reason", "engine"),
    }.items():
        plain = json.loads(json.dumps({group: settings[group] for group in groups}))
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(plain | {"prompts": "world"}))

    def command(name: str, options: str) -> None:
        assert rationalyst(f"{name} --config {tmp_path}/{name}.yaml {options}") == 0

    documents = run_dir / "data" / "documents.jsonl"
    command("mine", f"--documents {documents} --model world --out {tmp_path}/mine")
    command(
        "filter",
        f"--triples {tmp_path}/mine/triples.parquet --model world --out {tmp_path}/mine/rationalyst.parquet",
    )
    command(
        "train",
        f"--rationales {tmp_path}/mine/rationalyst.parquet --model world "
        f"--run_dir {tmp_path}/train/rationalyst",
    )
    questions = run_dir / "data" / "test.jsonl"
    command(
        "reason",
        f"--task gsm8k --questions {questions} --agent world --rationalyst {tmp_path}/train/rationalyst/hf "
        f"--out {tmp_path}/reason/implicit.jsonl",
    )
    for file in (
        "mine/annotations.jsonl",
        "mine/triples.parquet",
        "mine/rationalyst.parquet",
        "train/rationalyst/adapters/adapter_model.safetensors",
        "train/rationalyst/adapters/adapter_config.json",
        "train/rationalyst/hf/model.safetensors",
        "train/rationalyst/hf/tokenizer.json",
    ):
        assert (tmp_path / file).read_bytes() == (run_dir / file).read_bytes(), file
    assert traces(tmp_path / "reason/implicit.jsonl") == traces(run_dir / "reason/implicit.jsonl")


def test_engines_are_gone_when_training_loads_the_model(finished):
    _, [alive] = finished
    weights = (SHIPPED / "model.safetensors").stat().st_size
    # The file has a header too. An engine's cache alone is a hundred times as large.
    assert 0.99 * weights < alive < 1.5 * weights
