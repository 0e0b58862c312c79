"""Good and bad inputs of every kind for the tests of the commands."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from random_encoder import save_encoder
from random_model import random_llama

from rationalyst_jax.cli.main import main
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.mine.likelihood_filter import FilteredTriple
from rationalyst_jax.mine.store import Provenance, write_filtered
from rationalyst_jax.reason.traces import Trace, append_trace
from rationalyst_jax.world.vocabulary import make_tokenizer

QUESTION = "Ann has 3 apples. Ben has 1 more than Ann. How many apples do they have?"
DOCUMENT = f"{QUESTION}\nBen has 3 + 1 = 4 apples.\nThe answer is 7."
STEPS = ["Ben has 3 + 1 = 4 apples.", "The answer is 7."]
ANNOTATED = DOCUMENT.replace("Ben has 3 +", "<BOT>add<EOT>Ben has 3 +")


def rationalyst(command: str) -> int:
    """Runs a command line in this process and returns its exit status."""
    return main(shlex.split(command))


def small_llama(vocab_size: int, dtype: str = "float32", **changes: Any) -> Llama:
    config = LlamaConfig(vocab_size, 16, 32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, **changes)
    return random_llama(config, dtype=dtype, deviation=1.0)


def triple(document: str, index: int, gain: float, kept: bool = True) -> FilteredTriple:
    """All triples of a document share its beginning."""
    preceding, following = "Ann has 3 apples.\n", "Ben has 4 apples.\nThe answer is 7."
    return FilteredTriple(
        document_id=document,
        source="world",
        index=index,
        start=len(preceding),
        end=len(preceding + following),
        preceding=preceding,
        rationale=f"let us look at number {index}",
        following=following,
        logprob_without=-2.0,
        logprob_with=-2.0 + gain,
        gain=gain,
        tau=0.0,
        kept=kept,
        reason="gain" if kept else "below_tau",
    )


def write_files(root: Path) -> None:
    """Fills the folder `root`."""
    _write_models(root)
    save_encoder(root / "encoder")
    _write_rows(root)
    provenance = Provenance("annotator", "world-1", {})
    filtered = [triple("d", i, gain) for i, gain in enumerate((-1.0, 2.0, 1.0, 3.0))]
    write_filtered(root / "filtered.parquet", filtered, provenance)
    write_filtered(root / "none_kept.parquet", [triple("d", 0, -1.0, kept=False)], provenance)
    # The gold answers are 0 1 2 3.
    answers = {"random": ["0", "2", "9", "9"], "guided": ["0", "1", "2", None], "short": ["0", "1"]}
    for name, given in answers.items():
        traces = [Trace(f"q{i}", name, answer, "answer", (), (), {}, 0.0) for i, answer in enumerate(given)]
        for trace in traces:
            append_trace(root / f"{name}.jsonl", trace)
    numbers = pq.read_table(root / "filtered.parquet")
    place = numbers.column_names.index("preceding")
    pq.write_table(numbers.set_column(place, "preceding", [[3] * 4]), root / "number.parquet")
    (root / "unknown_key.yaml").write_text("prompts: world\nnonsense: {key: 1}\n")
    (root / "not.yaml").write_text("prompts: [world\n")
    (root / "tau.yaml").write_text("prompts: world\nfilter: {tau: 0.5, decay: 0.8}\n")
    (root / "random.yaml").write_text("task: gsm8k\nprompts: world\nreason: {strategy: random}\n")
    (root / "folder").mkdir()
    (root / "folder" / "something").write_text("x")
    (root / "empty_run" / "checkpoints").mkdir(parents=True)


def _write_models(root: Path) -> None:
    """One good checkpoint, and some that do not fit together or lack something."""
    tokenizer = make_tokenizer()
    model = small_llama(
        len(tokenizer),
        tie_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_llama(model, root / "model")
    tokenizer.save_pretrained(root / "model")
    for broken in ("misfit", "small", "strange", "unreadable", "no_template"):
        shutil.copytree(root / "model", root / broken)
    config = json.loads((root / "model" / "config.json").read_text())
    (root / "misfit" / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    (root / "small" / "config.json").write_text(json.dumps({**config, "vocab_size": 10}))
    (root / "strange" / "config.json").write_text(json.dumps({**config, "eos_token_id": 99999}))
    (root / "no_template" / "chat_template.jinja").unlink()
    (root / "unreadable" / "tokenizer.json").write_text("{")


def _write_rows(root: Path) -> None:
    files = {
        "documents": [{"id": f"d{i}", "text": DOCUMENT, "source": "world"} for i in range(3)],
        "annotations": [
            {"id": "a", "input": DOCUMENT, "output": ANNOTATED},
            {"id": "b", "input": DOCUMENT, "output": DOCUMENT.replace("The ", "<BOT>done<EOT>The ")},
            {"id": "c", "input": DOCUMENT, "output": "something else"},
        ],
        "questions": [{"id": f"q{i}", "question": QUESTION, "answer": f"4\n#### {i}"} for i in range(4)],
        "train": [{"question": f"{QUESTION} {i}", "answer": f"4\n#### {i}"} for i in range(9)],
        "solutions": [
            {"id": f"s{i}", "problem": f"{QUESTION} {i // 2}", "steps": STEPS, "label": i % 2 - 1}
            for i in range(40)
        ],
        "no_such_step": [{"id": "s", "problem": QUESTION, "steps": STEPS, "label": 2}],
        "no_answer": [{"question": QUESTION, "answer": "none"}],
        "pairs": [
            {"context": "", "continuation": "Ann has 3 apples."},
            {"context": "", "continuation": "Ann has"},
            {"context": "Ann has", "continuation": " 3 apples.", "name": "rest"},
        ],
        "long": [{"context": "", "continuation": text} for text in ("Ann has", "has " * 9000)],
        "no_continuation": [{"context": "a", "continuation": "b"}, {"context": "a", "continuation": ""}],
        "labels": [{"document_id": "d", "index": i, "good": i in (1, 3)} for i in range(4)],
        "no_such_label": [{"document_id": "d", "index": 9, "good": True}],
        "bad_label": [{"document_id": "d", "index": 1, "good": "yes"}],
        "none_good": [{"document_id": "d", "index": 1, "good": False}],
    }
    for name, rows in files.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "text.jsonl").write_text("plain text\n")
