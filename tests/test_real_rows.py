"""Every stage on real rows with the real Llama-3 tokenizer, by the commands a user would type."""

import json
import re

import pytest
from random_model import random_llama

from rationalyst_jax.cli.main import main
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer


@pytest.mark.parametrize(
    ("documents", "steps", "asked", "D"),
    [(4, 2, 1, 16), pytest.param(86, 50, 20, 64, marks=pytest.mark.slow)],
)
def test_imported_annotations_are_filtered_trained_on_and_guide_an_untrained_model(
    shared, tmp_path, capsys, documents, steps, asked, D
):
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D,
        intermediate_size=2 * D,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=D // 4,
        tie_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,  # pyright: ignore[reportArgumentType]
        eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
    )
    base = tmp_path / "base"
    save_llama(random_llama(config), base)
    tokenizer.save_pretrained(base)
    common = ["--prompts", "llama3"]

    def rationalyst(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        printed = capsys.readouterr().out
        with capsys.disabled():
            print(printed)
        return printed

    annotations = shared / "rationalyst" / "extractor_output.jsonl"
    mined = rationalyst("mine", "--annotations", annotations, "--out", tmp_path / "mined", *common)
    assert re.search(r"documents\W+86\b", mined) and re.search(r"faithful\W+84\b", mined)
    assert re.search(r"triples\W+216\b", mined)
    first = tmp_path / "first.jsonl"
    first.write_text("".join(annotations.read_text().splitlines(keepends=True)[:documents]))
    rationalyst("mine", "--annotations", first, "--out", tmp_path / "mined", *common)
    triples = tmp_path / "mined" / "triples.parquet"
    kept = tmp_path / "kept.parquet"
    # An untrained model's gains are noise around zero; any threshold would do for the test.
    judged = ["--filter.tau", 0, "--filter.rows_per_batch", 1]
    rationalyst("filter", "--triples", triples, "--model", base, "--out", kept, *common, *judged)
    rationalyst("stats", "--triples", triples, "--tokenizer", shared / "llama3_tokenizer", *common)
    rationalyst(
        *("train", "--rationales", kept, "--model", base, "--run_dir", tmp_path / "run", *common),
        *("--train.steps", steps, "--train.peak_learning_rate", "1e-3", "--train.microbatch_rows", 1),
    )
    questions = shared / "gsm8k" / "test.jsonl"
    traces = tmp_path / "implicit.jsonl"
    rationalyst(
        *("reason", "--task", "gsm8k", "--questions", questions, "--limit", asked, "--agent", base, *common),
        *("--rationalyst", tmp_path / "run" / "hf", "--out", traces, "--reason.strategy", "implicit"),
        *("--reason.max_steps", 2, "--reason.max_step_tokens", 16, "--reason.max_rationale_tokens", 16),
        *("--engine.max_sequences", 3 * asked),
    )
    assert len(traces.read_text().splitlines()) == asked
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(losses) == steps and (steps < 50 or losses[-1] < losses[0] - 1)
    graded = rationalyst(
        "evaluate", "--task", "gsm8k", "--questions", questions, "--limit", asked, "--traces", traces
    )
    assert f"none of {asked} right; whatever wrote it solves nothing here" in " ".join(graded.split())
