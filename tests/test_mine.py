"""Documents in, annotations, triples on disk, and thresholds from labels."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.weights.hf import load_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.mine import annotate as annotate_module
from rationalyst_jax.mine.annotate import annotate, document_seed
from rationalyst_jax.mine.calibrate import LabeledGain, calibrate
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.mine.documents import Annotation, Document, read_annotations, read_documents
from rationalyst_jax.mine.likelihood_filter import FilteredTriple
from rationalyst_jax.mine.store import (
    Provenance,
    read_filtered,
    read_provenance,
    read_triples,
    write_filtered,
    write_triples,
)
from rationalyst_jax.mine.summary import summarize
from rationalyst_jax.mine.triples import Triple, extract
from rationalyst_jax.prompts.prompt import Prompt, PromptSet, load_prompts
from rationalyst_jax.world.checkpoint import checkpoint_path
from rationalyst_jax.world.corpus import documents as world_documents


def write_lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# Documents


def test_documents_are_read_with_defaults_for_id_and_source(tmp_path):
    path = write_lines(
        tmp_path / "pile.jsonl",
        {"id": "x", "text": "a\u2028b", "source": "web"},
        "",
        {"text": "c", "meta": {}},
    )
    assert read_documents(path) == [Document("x", "a\u2028b", "web"), Document("pile-3", "c", "pile")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ([1], "expected an object, found [1]"),
        ({"id": "b"}, "no 'text'"),
        ({"id": "b", "text": 3}, "'text' must be text, found 3"),
        ({"id": 7, "text": "b"}, "'id' must be text, found 7"),
        ({"id": "b", "text": " \n"}, "'text' is empty"),
        ({"id": "a", "text": "b"}, "id 'a' was used before, at "),
        ('{"id": "b", "text": "\\ud800"}', "surrogates not allowed"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    path = write_lines(tmp_path / "d.jsonl", {"id": "a", "text": "a"}, row)
    with pytest.raises(ValueError) as error:
        read_documents(path)
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_utf8_and_missing_files_are_named(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"d\.jsonl:1: not JSON"):
        read_documents(tmp_path / "d.jsonl")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_documents(tmp_path / "none.jsonl")


def test_text_annotated_elsewhere_is_imported(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"input": "x y", "output": "x <BOT>r<EOT> y"})
    assert read_annotations(path) == [Annotation(Document("a-1", "x y", "a"), "x <BOT>r<EOT> y", "imported")]
    with pytest.raises(ValueError, match=r"b\.jsonl:1: no 'output'"):
        read_annotations(write_lines(tmp_path / "b.jsonl", {"input": "x"}))


@pytest.mark.parametrize(
    ("config", "key", "value", "message"),
    [
        (AnnotateConfig, "block", 0, "annotate: block must be at least 1, got 0"),
        (AnnotateConfig, "max_document_tokens", 0, "max_document_tokens must be at least 1"),
        (AnnotateConfig, "length_bucket", 0, "length_bucket must be at least 1"),
        (AnnotateConfig, "length_margin", -1, "length_margin must be at least 0, got -1"),
        (AnnotateConfig, "length_factor", 0.0, "length_factor must be above 0 and finite, got 0.0"),
        (AnnotateConfig, "temperature", float("nan"), "temperature must be 0 (greedy) or more, got nan"),
        (AnnotateConfig, "top_p", 0.0, "top_p must be above 0 and at most 1, got 0.0"),
        (AnnotateConfig, "seed", -1, "seed must be at least 0, got -1"),
        (FilterConfig, "row_length", 0, "filter: row_length must be at least 1, got 0"),
        (FilterConfig, "rows_per_batch", 0, "rows_per_batch must be at least 1"),
        (FilterConfig, "block", 0, "block must be at least 1"),
        (FilterConfig, "decay", 1.5, "decay must be above 0 and at most 1, got 1.5"),
        (FilterConfig, "seed", -1, "seed must be at least 0"),
        (FilterConfig, "tau", float("inf"), "tau must be finite, got inf"),
        (FilterConfig, "tau_by_source", {"web": float("nan")}, "tau_by_source.web must be finite, got nan"),
        (FilterConfig, "reduction", "median", "unknown reduction 'median'"),
    ],
)
def test_a_setting_out_of_range_is_named(config, key, value, message):
    with pytest.raises(ValueError) as error:
        config(**{key: value})
    assert message in str(error.value)


# Annotation


class CopyingEngine:
    """Writes each document's length, its seed and, after `patience` calls, nothing more."""

    def __init__(self, patience: int | None = None, positions: int = 100):
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
        self.patience = patience
        self.requests = []

    def forget(self):
        pass

    def generate(self, requests):
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience = None if self.patience is None else self.patience - 1
        self.requests += requests
        return [[SimpleNamespace(text=f"{len(r.context)} {r.seed} é\n", finish="stop")] for r in requests]


PROMPTS = PromptSet(
    "1",
    "{question}\n",
    {"annotate": Prompt("annotate", (("assistant", "{document}|copy|{annotated}|end|"),))},
)
DOCUMENTS = [Document(f"d{i}", "word " * (i % 7 + 1) + "end", "s") for i in range(10)]


@pytest.fixture
def tokenizer(monkeypatch) -> Any:
    """Words as tokens: the engine is a fake, so what the ids are does not matter."""
    monkeypatch.setattr(
        annotate_module,
        "render",
        lambda tokenizer, prompt, fields, target, close: (tuple(range(len(fields["document"].split()))), ()),
    )
    return lambda text, add_special_tokens: {"input_ids": text.split()}


def run_annotate(path, engine: Any, tokenizer, documents=DOCUMENTS, progress=lambda done: None, **config):
    return annotate(documents, engine, tokenizer, PROMPTS, AnnotateConfig(block=4, **config), path, progress)


def test_annotations_are_asked_for_with_a_seed_of_their_own_and_room_for_rationales(tmp_path, tokenizer):
    engine = CopyingEngine()
    annotations = run_annotate(
        tmp_path / "a.jsonl", engine, tokenizer, seed=3, length_margin=2, length_bucket=4
    )
    assert [a.document for a in annotations] == DOCUMENTS
    assert annotations[1] == Annotation(DOCUMENTS[1], f"3 {document_seed(3, 1)} é\n", "stop")
    assert len({r.seed for r in engine.requests}) == len(DOCUMENTS)
    assert all(0 <= r.seed < 2**31 and r.stop == ("|end|",) and r.temperature == 1 for r in engine.requests)
    assert [r.max_tokens for r in engine.requests[:3]] == [8, 8, 12]  # 1.6 · (2, 3, 4) + 2, up to 4s
    assert read_annotations(tmp_path / "a.jsonl") == annotations


@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("tail", ["", '{"id": "d4", "so', "row"])
def test_a_killed_run_continues_with_the_same_bytes(tmp_path, tokenizer, blocks, tail):
    run_annotate(tmp_path / "whole.jsonl", CopyingEngine(), tokenizer)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "killed.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_annotate(path, CopyingEngine(patience=blocks), tokenizer)
    with path.open("ab") as file:
        file.write(whole.splitlines(keepends=True)[4 * blocks] if tail == "row" else tail.encode())
    engine, done = CopyingEngine(), []
    run_annotate(path, engine, tokenizer, progress=done.append)
    assert path.read_bytes() == whole
    assert len(engine.requests) == len(DOCUMENTS) - 4 * blocks and sum(done) == len(DOCUMENTS)


def test_a_finished_run_asks_for_nothing(tmp_path, tokenizer):
    first = run_annotate(tmp_path / "a.jsonl", CopyingEngine(), tokenizer)
    assert run_annotate(tmp_path / "a.jsonl", CopyingEngine(patience=0), tokenizer) == first


def test_annotations_of_other_documents_are_refused_and_kept(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    run_annotate(path, CopyingEngine(), tokenizer)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.jsonl: holds 10 rows, this run has only 2"):
        run_annotate(path, CopyingEngine(), tokenizer, documents=DOCUMENTS[:2])
    with pytest.raises(ValueError, match=r"a\.jsonl:1: annotates 'd0', this run has 'd9' there"):
        run_annotate(path, CopyingEngine(), tokenizer, documents=DOCUMENTS[::-1])
    assert path.read_bytes() == before


def test_documents_that_are_too_long_are_left_out_by_name(tmp_path, tokenizer):
    engine = CopyingEngine()
    annotations = run_annotate(tmp_path / "a.jsonl", engine, tokenizer, max_document_tokens=4)
    assert [a.finish for a in annotations] == ["stop"] * 3 + ["too_long"] * 4 + ["stop"] * 3
    assert engine.requests[3].seed == document_seed(0, 7)  # a seed goes with the place in the run
    # A prompt (here the document itself) and its copy must fit in the model's positions.
    annotations = run_annotate(tmp_path / "b.jsonl", CopyingEngine(positions=8), tokenizer)
    assert [a.finish for a in annotations] == ["stop"] * 3 + ["too_long"] * 4 + ["stop"] * 3


def test_a_real_model_annotates_and_a_killed_run_continues_with_the_same_bytes(tmp_path):
    base = checkpoint_path("world")
    tokenizer, prompts = load_tokenizer(base), load_prompts("world")
    engine = Engine(load_llama(base), tokenizer)
    documents = [Document(row["id"], row["text"], row["source"]) for row in world_documents(7, 3)]
    config = AnnotateConfig(block=2)
    path = tmp_path / "a.jsonl"
    annotations = annotate(documents, engine, tokenizer, prompts, config, path)
    assert all(a.finish in ("stop", "end") for a in annotations)
    assert extract(annotations).annotated >= 2  # it knows what it is asked for
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert annotate(documents, engine, tokenizer, prompts, config, path) == annotations
    assert path.read_bytes() == whole


# Parquet

TRIPLES = [
    Triple("d0", "s", 0, 4, 9, "one ", "add\n“them”", "two 三"),
    Triple("d0", "s", 1, 9, 12, "one two 三", "b", "end"),
]
FILTERED = [
    FilteredTriple(
        **vars(TRIPLES[0]),
        logprob_without=-2.0,
        logprob_with=-1.5,
        gain=0.5,
        tau=0.1,
        kept=True,
        reason="gain",
    ),
    FilteredTriple(
        **vars(TRIPLES[1]),
        logprob_without=None,
        logprob_with=None,
        gain=None,
        tau=0.1,
        kept=False,
        reason="too_long",
    ),
]
PROVENANCE = Provenance("base", "1", {"filter": {"tau": 0.1}})


def test_triples_come_back_from_parquet_with_their_provenance(tmp_path):
    write_triples(tmp_path / "t.parquet", TRIPLES, PROVENANCE)
    write_filtered(tmp_path / "f.parquet", FILTERED, PROVENANCE)
    assert read_triples(tmp_path / "t.parquet") == TRIPLES == read_triples(tmp_path / "f.parquet")
    assert read_filtered(tmp_path / "f.parquet") == FILTERED
    assert read_provenance(tmp_path / "f.parquet") == PROVENANCE
    table = pq.read_table(tmp_path / "f.parquet")
    assert (
        table.column("model").to_pylist() == ["base"] * 2
        and table.column("prompt_version").to_pylist() == ["1"] * 2
    )
    assert "jax" in json.loads(table.schema.metadata[b"packages"])


def test_equal_triples_make_equal_bytes_and_nothing_else_is_left(tmp_path):
    for name in ("a.parquet", "b.parquet"):
        write_filtered(tmp_path / name, FILTERED, PROVENANCE)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_no_triples_are_a_file_too(tmp_path):
    write_filtered(tmp_path / "f.parquet", [], PROVENANCE)
    assert read_filtered(tmp_path / "f.parquet") == []


def test_files_that_are_no_triples_are_named(tmp_path):
    write_triples(tmp_path / "t.parquet", TRIPLES, PROVENANCE)
    with pytest.raises(ValueError, match=r"t\.parquet: no column logprob_without, logprob_with, gain, tau"):
        read_filtered(tmp_path / "t.parquet")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"x\.parquet: not Parquet"):
        read_triples(tmp_path / "x.parquet")
    with pytest.raises(FileNotFoundError, match=r"none\.parquet"):
        read_triples(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("preceding", [1, 2], "column preceding holds int64, not string"),
        ("document_id", [1, 2], "column document_id holds int64, not string"),
        ("rationale", ["a", None], "column rationale has no value in row 2"),
        ("gain", ["1.0", "2.0"], "column gain holds string, not double"),
        ("kept", ["false", "false"], "column kept holds string, not bool"),
        ("index", [0.5, 1.0], "column index: Float value 0.5"),
        ("index", [0, 2**40], "column index: Integer value"),
        ("index", [1, 1], "rows 1 and 2 are both rationale 1 of document 'd0'"),
    ],
)
def test_a_column_that_is_not_as_it_must_be_is_named(tmp_path, column, values, message):
    path = tmp_path / "f.parquet"
    write_filtered(path, FILTERED, PROVENANCE)
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, [values]), path)
    with pytest.raises(ValueError) as error:
        read_filtered(path)
    assert str(error.value).startswith(f"{path}: {message}") and "\n" not in str(error.value)


def test_columns_of_another_width_are_read(tmp_path):
    write_filtered(tmp_path / "f.parquet", FILTERED, PROVENANCE)
    table = pq.read_table(tmp_path / "f.parquet")
    wider = {"index": pa.int64(), "end": pa.float64(), "preceding": pa.large_string(), "tau": pa.float32()}
    for name, type in wider.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(type))
    source = table.column_names.index("source")
    table = table.set_column(source, "source", table["source"].dictionary_encode())
    pq.write_table(table, tmp_path / "wide.parquet")
    assert read_triples(tmp_path / "wide.parquet") == TRIPLES
    assert [row.gain for row in read_filtered(tmp_path / "wide.parquet")] == [0.5, None]


def test_the_summary_counts_every_stage():
    text = "one two three\nfour five six"
    outputs = [
        "one <BOT>hm<EOT> two three\nfour five six",
        text,
        "no",
        "one <BOT>hm<EOT>two three <EOT>four five six",
    ]
    extraction = extract(
        Annotation(Document(str(i), text, "s"), output, "stop") for i, output in enumerate(outputs)
    )
    summary = summarize(extraction, FILTERED)
    assert (summary.documents, summary.annotated, summary.faithful) == (4, 2, 3)
    assert (summary.triples, summary.kept) == (2, 1)
    assert summary.document_outcomes == {"exact": 2, "unannotated": 1, "changed": 1}
    assert summary.rationale_outcomes == {"clean": 2, "stray": 1}
    assert summary.reasons == {"gain": 1, "too_long": 1}


# Calibration


def wilson_low(good: int, n: int, confidence: float):
    """Wilson's interval (1927), written out."""
    z = norm.ppf(0.5 + confidence / 2)
    p = good / n
    return (p + z**2 / (2 * n) - z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))) / (1 + z**2 / n)


def test_calibration_finds_the_smallest_tau_by_brute_force():
    rng = np.random.default_rng(0)
    labeled = [
        LabeledGain(float(round(g, 1)), bool(rng.random() < 1 / (1 + np.exp(-g))))
        for g in rng.normal(0, 2, 300)
    ]
    for wanted in (0.6, 0.75, 0.9):
        found = calibrate(labeled, wanted)

        def precision(tau):
            kept = [item.good for item in labeled if item.gain >= tau]
            return sum(kept) / len(kept)

        assert found.tau == min(item.gain for item in labeled if precision(item.gain) >= wanted)
        kept = [item.good for item in labeled if item.gain >= found.tau]
        assert found.precision == precision(found.tau) and found.kept == len(kept) and found.total == 300
        assert found.recall == sum(kept) / sum(item.good for item in labeled)
        assert found.precision_low == pytest.approx(wilson_low(sum(kept), len(kept), 0.95))


def test_unreachable_precision_names_the_best_there_is():
    labeled = [LabeledGain(2.0, False), LabeledGain(1.0, True), LabeledGain(0.0, False)]
    with pytest.raises(
        ValueError, match=r"no tau has precision 0\.9; the best is 0\.500 at tau 1\.000, which keeps 2 of 3"
    ):
        calibrate(labeled, 0.9)
    with pytest.raises(ValueError, match="none of 1 labeled rationales is good"):
        calibrate(labeled[:1], 0.5)
