"""What is known before a model's weights are read is checked before: weights of a real model take minutes."""

import json
import shutil
from pathlib import Path

import pytest
from cli_files import rationalyst

from rationalyst_jax.files.lock import locked

FILTER = "filter --triples filtered.parquet --prompts world --model model --out x"
REASON = "reason --config random.yaml --questions questions.jsonl --agent model --out x"
RANKED = "reason --task gsm8k --prompts world --questions questions.jsonl --agent model --out x"
TRAIN = "train --rationales filtered.parquet --prompts world --run_dir x"
CHECKED = {
    f"{FILTER} --filter.suppress [nonsense]": "suppress: 'nonsense' is",
    f"{FILTER} --mesh.fsdp -1 --filter.rows_per_batch 6": "rows_per_batch must be a multiple of the mesh's 8",
    FILTER.replace(
        "--out x", "--out begun.parquet"
    ): "begun.parquet.scores.config.json: made with other settings",
    FILTER.replace("--out x", "--out taken.parquet"): "taken.parquet.scores.jsonl: process",
    f"{REASON} --reason.suppress [nonsense]": "suppress: 'nonsense' is",
    REASON.replace("--out x", "--out begun.jsonl"): "begun.jsonl.config.json: made with other settings",
    REASON.replace("--out x", "--out taken.jsonl"): "taken.jsonl: process",
    f"{RANKED} --reason.strategy likelihood --scorer http://127.0.0.1:9/v1 --endpoint.model m": (
        "needs log-probabilities: the scorer must be"
    ),
    f"{TRAIN} --model short": "an example of document 'd' is",
    f"{TRAIN} --model model --train.validation_fraction 0.9999": "held out all 1 groups",
    "demo --run_dir x --train.mesh.replica 3": "mesh: replica 3, fsdp -1, tensor 1 do not divide 8 devices",
    "score --pairs long.jsonl --model model --out x": "long.jsonl:2: ",
}


@pytest.mark.parametrize("command", CHECKED)
def test_a_mistake_is_named_before_weights_are_read(command, files: Path, tmp_path, monkeypatch, capsys):
    def reading(*arguments, **options):
        raise ValueError("weights are read")

    monkeypatch.setattr("rationalyst_jax.lm.weights.open.load_llama", reading)
    for name in ("filtered.parquet", "questions.jsonl", "random.yaml", "long.jsonl"):
        shutil.copy(files / name, tmp_path)
    shutil.copytree(files / "model", tmp_path / "model")
    shutil.copytree(files / "model", tmp_path / "short")
    config = json.loads((tmp_path / "short/config.json").read_text())
    (tmp_path / "short/config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    for name in ("begun.parquet.scores.jsonl", "begun.jsonl"):
        (tmp_path / name).write_text("{}\n")
    for name in ("begun.parquet.scores.config.json", "begun.jsonl.config.json"):
        (tmp_path / name).write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    with locked(tmp_path / "taken.parquet.scores.jsonl"), locked(tmp_path / "taken.jsonl"):
        assert rationalyst(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and CHECKED[command] in error
