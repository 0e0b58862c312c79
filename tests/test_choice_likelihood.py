"""Choice by likelihood: lm-evaluation-harness with its transformers backend is the oracle."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from choice_tasks import TASKS
from random_model import random_llama

from rationalyst_jax.cli.main import main
from rationalyst_jax.evaluate.choice_likelihood import begin, choice_scores, encode_clozes
from rationalyst_jax.evaluate.config import ChooseConfig
from rationalyst_jax.files.rows import read_table
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.pipeline import choose as choosing
from rationalyst_jax.pipeline.choose import choose
from rationalyst_jax.pipeline.models import Models
from rationalyst_jax.tasks import benchmarks
from rationalyst_jax.tasks.cloze import Cloze
from rationalyst_jax.world.checkpoint import checkpoint_path

TINY = LlamaConfig(128256, 32, 64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, bos_token_id=128000)
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
    task_manager=TaskManager(include_path=asked["include"], include_defaults=False), log_samples=True, bootstrap_iters=0,
)
with open(asked["out"], "w") as file:
    json.dump([found["samples"], found["results"]], file, default=str)
"""


def their_rows(task: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as the harness reads them: CommonsenseQA not as it was published, but as its copy on the hub."""
    if task != "commonsense_qa":
        return rows
    choices = [row["question"]["choices"] for row in rows]
    flat = [{key: [one[key] for one in of_row] for key in ("label", "text")} for of_row in choices]
    return [
        {
            "id": row["id"],
            "question": row["question"]["stem"],
            "choices": of_row,
            "answerKey": row["answerKey"],
        }
        for row, of_row in zip(rows, flat, strict=True)
    ]


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
        if file.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(questions[task]), tmp_path / f"{task}.parquet")
    samples, results = harness(llama3, questions, tmp_path)
    furthest = 0.0
    with Models(EngineConfig()) as models:
        for task in ROWS:
            out = tmp_path / f"{task}.out.jsonl"
            found = choose(TASKS[task], shared / ROWS[task], llama3, models, ChooseConfig(), out, limit=n)
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
