"""lm-evaluation-harness as a client of `rationalyst serve`; its own transformers backend is the oracle."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from rationalyst_jax.world.checkpoint import checkpoint_path
from rationalyst_jax.world.corpus import questions

pytestmark = pytest.mark.skipif(
    not (find_spec("lm_eval") and find_spec("torch")), reason="lm-eval and torch come with the test extra"
)

FOLDER = checkpoint_path("world")
CHOICES = [" The answer is 4.", " The answer is 12.", " At first Ann has 3 apples."]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Offline tasks: log-likelihoods of choices, a perplexity, and text that is generated up to a stop."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": row["question"], "choices": CHOICES, "label": i % 3}
        for i, row in enumerate(questions(0, 6))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}\n",
        "metadata": {"version": 1},
    }
    kinds = {
        "choose": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        "perplexity": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
        "write": {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[label]}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 24, "temperature": 0, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, kind in kinds.items():
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name, **common, **kind}), encoding="utf-8"
        )
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "rationalyst_jax.cli.main", "serve", "--model", "world", "--port", "0"]
    command += ["--engine.max_sequences", "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = next(line for line in server.stdout if " at http://" in line)
        yield re.sub(r".* at ", "", line).strip()
        server.terminate()


# One process for both sides. The metrics' errors are not asked for: to bootstrap them takes long.
EVALUATING = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

asked = json.loads(sys.argv[1])
tasks = TaskManager(include_path=asked["include"])
for side, how in asked["sides"].items():
    found = lm_eval.simple_evaluate(
        **how, tasks=asked["tasks"], task_manager=tasks, log_samples=True, bootstrap_iters=0
    )
    samples = {
        name: [sample["filtered_resps"] for sample in sorted(samples, key=lambda one: one["doc_id"])]
        for name, samples in found["samples"].items()
    }
    with open(f"{asked['out']}/{side}.json", "w") as file:
        json.dump(samples, file)
"""


def evaluated(tasks: Path, out: Path, names: list[str], **sides: dict) -> list[dict[str, list]]:
    """What the harness got, by each side, for each document of each task, in order."""
    asked = {"include": str(tasks), "tasks": names, "out": str(out), "sides": sides}
    offline = {
        "HF_HOME": str(out),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OPENAI_API_KEY": "none",
    }
    command = [sys.executable, "-c", EVALUATING, json.dumps(asked)]
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((out / f"{side}.json").read_text(encoding="utf-8")) for side in sides]
    assert all(len(samples[name]) == 6 for samples in found for name in names)
    return found


THEIRS = {"model": "hf", "model_args": f"pretrained={FOLDER},dtype=float32", "device": "cpu"}


def test_the_harness_measures_what_it_measures_with_transformers(tasks, address, tmp_path):
    remote = f"model=world,base_url={address}/completions,tokenizer={FOLDER},tokenizer_backend=huggingface"
    served = {"model": "local-completions", "model_args": f"{remote},num_concurrent=4"}
    ours, theirs = evaluated(tasks, tmp_path, ["choose", "perplexity", "write"], ours=served, theirs=THEIRS)
    assert ours["write"] == theirs["write"]
    assert len({str(written) for written in ours["write"]}) > 1
    for mine, other in zip(ours["choose"], theirs["choose"], strict=True):
        assert [float(x) for x, _ in mine] == pytest.approx([float(x) for x, _ in other], abs=1e-3)
        assert [greedy for _, greedy in mine] == [greedy for _, greedy in other]
    assert [float(x) for [x] in ours["perplexity"]] == pytest.approx(
        [float(x) for [x] in theirs["perplexity"]], abs=1e-3
    )


@pytest.mark.slow
def test_the_harness_chats(tasks, address, tmp_path):
    served = {
        "model": "local-chat-completions",
        "model_args": f"model=world,base_url={address}/chat/completions",
    }
    chat = {"apply_chat_template": True}
    ours, theirs = evaluated(tasks, tmp_path, ["write"], ours=served | chat, theirs=THEIRS | chat)
    assert len({str(written) for written in ours["write"]}) > 1
    assert ours == theirs
