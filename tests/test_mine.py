"""Documents in, annotations, triples on disk, and thresholds from labels."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from one_a_step import OneAStep
from scipy.stats import norm

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, Generation, Handle
from rationalyst_jax.lm.weights.hf import load_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.mine.annotate import annotate
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
from rationalyst_jax.mine.summary import summarize_filtered, summarize_mined
from rationalyst_jax.mine.triples import Triple, extract
from rationalyst_jax.prompts.prompt import Prompt, PromptSet, load_prompts
from rationalyst_jax.roles.role import NotAnswered, Role, derived_seed
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
        ({"id": 7.5, "text": "b"}, "'id' must be text, found 7.5"),
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
        (AnnotateConfig, "length_margin", -1, "length_margin must be at least 0, got -1"),
        (AnnotateConfig, "length_factor", 0.0, "length_factor must be above 0 and finite, got 0.0"),
        (AnnotateConfig, "temperature", float("nan"), "temperature must be 0 (greedy) or more, got nan"),
        (AnnotateConfig, "top_p", 0.0, "top_p must be above 0 and at most 1, got 0.0"),
        (AnnotateConfig, "seed", 2**32, "seed must be from 0 to 4294967295, got 4294967296"),
        (FilterConfig, "row_length", 0, "filter: row_length must be at least 1, got 0"),
        (FilterConfig, "rows_per_batch", 0, "rows_per_batch must be at least 1"),
        (FilterConfig, "block", 0, "block must be at least 1"),
        (FilterConfig, "decay", 1.5, "decay must be above 0 and at most 1, got 1.5"),
        (FilterConfig, "seed", -1, "seed must be from 0 to 4294967295"),
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


class CopyingModel(OneAStep):
    """Writes each document's length and seed."""

    def __init__(self, patience: int = 1000, positions: int | None = 100):
        super().__init__(patience, positions)

    def answer(self, handle: Handle) -> Any:
        text = f"{len(handle.request.context)} {handle.request.seed} é\n"
        return [Generation((1,), np.zeros(1), text, "stop")]


class WordRole(Role):
    """Words as tokens: the model is a fake, so what the ids are does not matter."""

    def count_tokens(self, text):
        return len(text.split())

    def to_generate(self, prompt, fields, how):
        options = {name: value for name, value in vars(how).items() if name != "suppress"}
        return GenerateRequest(tuple(range(len(str(fields["document"]).split()))), **options)


PROMPTS = PromptSet(
    "1",
    "{question}\n",
    {"annotate": Prompt("annotate", (("assistant", "{document}|copy|{annotated}|end|"),))},
)
DOCUMENTS = [Document(f"d{i}", "word " * (i % 7 + 1) + "end", "s") for i in range(10)]


def run_annotate(path, model: Any, documents=DOCUMENTS, progress=lambda *counts: None, **config):
    tokenizer: Any = None
    role = WordRole(model, tokenizer)
    return annotate(documents, role, PROMPTS, AnnotateConfig(block=4, **config), path, progress)


def test_annotations_are_asked_for_with_a_seed_of_their_own_and_room_for_rationales(tmp_path):
    model = CopyingModel()
    annotations = run_annotate(tmp_path / "a.jsonl", model, seed=3, length_margin=2)
    assert [a.document for a in annotations] == DOCUMENTS
    assert annotations[1] == Annotation(DOCUMENTS[1], f"3 {derived_seed(3, 1)} é\n", "stop")
    assert len({r.seed for r in model.requests}) == len(DOCUMENTS)
    assert all(0 <= r.seed < 2**31 and r.stop == ("|end|",) and r.temperature == 1 for r in model.requests)
    assert [r.max_tokens for r in model.requests[:3]] == [6, 7, 9]  # 1.6 · (2, 3, 4) + 2, rounded up
    assert read_annotations(tmp_path / "a.jsonl") == annotations


@pytest.mark.parametrize("steps", [0, 3, 4, 9])
@pytest.mark.parametrize("tail", ["", '{"id": "d4", "so', "row"])
def test_a_killed_run_asks_only_for_what_is_missing_and_ends_with_the_same_bytes(tmp_path, steps, tail):
    run_annotate(tmp_path / "whole.jsonl", CopyingModel())
    whole = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "killed.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_annotate(path, CopyingModel(patience=steps))
    assert len(path.read_bytes().splitlines()) == steps  # each as soon as it was done
    with path.open("ab") as file:
        file.write(whole.splitlines(keepends=True)[0] if tail == "row" else tail.encode())
    model = CopyingModel()
    told = []
    run_annotate(path, model, progress=lambda *counts: told.append(counts))
    assert path.read_bytes() == whole
    kept = steps + (tail == "row" and steps < 4)  # the first block ends with the first document
    assert len(model.requests) == len(DOCUMENTS) - kept
    assert told[0][:2] == (kept, len(DOCUMENTS)) and told[-1][:2] == (len(DOCUMENTS), len(DOCUMENTS))


def test_a_finished_run_asks_for_nothing(tmp_path):
    first = run_annotate(tmp_path / "a.jsonl", CopyingModel())
    assert run_annotate(tmp_path / "a.jsonl", CopyingModel(patience=0)) == first


def test_annotations_of_other_documents_are_refused_and_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    run_annotate(path, CopyingModel())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.jsonl:3: annotates 'd2', which is no document of this run"):
        run_annotate(path, CopyingModel(), documents=DOCUMENTS[:2])
    assert path.read_bytes() == before


def test_a_document_that_was_mended_is_annotated_anew_and_the_others_are_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    run_annotate(path, CopyingModel())
    mended = [*DOCUMENTS[:5], Document("d5", "mended end", "s"), *DOCUMENTS[6:]]
    model = CopyingModel()
    annotations = run_annotate(path, model, documents=mended)
    assert len(model.requests) == 1 and [a.document for a in annotations] == mended
    assert annotations[5] == Annotation(mended[5], f"2 {derived_seed(0, 5)} é\n", "stop")
    assert read_annotations(path) == annotations


def test_documents_that_an_endpoint_refuses_fail_alone(tmp_path):
    class Refusing(CopyingModel):
        def step(self):
            [handle] = super().step()
            if len(handle.request.context) == 3:
                handle.error = NotAnswered("too much")
            return [handle]

    path = tmp_path / "a.jsonl"
    message = r"annotate: 2 of 10 documents failed, as document d1: too much; the others are in .*a\.jsonl"
    with pytest.raises(ValueError, match=message):
        run_annotate(path, Refusing())
    assert len(path.read_bytes().splitlines()) == 8
    model = CopyingModel()
    assert len(run_annotate(path, model)) == 10 and len(model.requests) == 2


def test_documents_that_are_too_long_are_left_out_by_name(tmp_path):
    model = CopyingModel()
    annotations = run_annotate(tmp_path / "a.jsonl", model, max_document_tokens=4)
    assert [a.finish for a in annotations] == ["stop"] * 3 + ["too_long"] * 4 + ["stop"] * 3
    assert model.requests[3].seed == derived_seed(0, 7)  # a seed goes with the place in the run
    # A prompt (here the document itself) and its copy must fit in the model's positions.
    annotations = run_annotate(tmp_path / "b.jsonl", CopyingModel(positions=8))
    assert [a.finish for a in annotations] == ["stop"] * 3 + ["too_long"] * 4 + ["stop"] * 3


def test_a_real_model_annotates_and_a_killed_run_continues_with_the_same_bytes(tmp_path):
    base = checkpoint_path("world")
    tokenizer = load_tokenizer(base)
    prompts = load_prompts("world")
    role = Role(Engine(load_llama(base), tokenizer, max_sequences=8, prefill_chunks=1), tokenizer)
    documents = [Document(row["id"], row["text"], row["source"]) for row in world_documents(7, 3)]
    config = AnnotateConfig(block=2)
    path = tmp_path / "a.jsonl"
    annotations = annotate(documents, role, prompts, config, path)
    assert all(a.finish in ("stop", "end") for a in annotations)
    assert extract(annotations).annotated >= 2  # it knows what it is asked for
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert annotate(documents, role, prompts, config, path) == annotations
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
        ("document_id", [0.5, 1.5], "column document_id holds double, not string"),
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


def test_integers_identify_documents_too(tmp_path):
    write_triples(tmp_path / "t.parquet", TRIPLES, PROVENANCE)
    table = pq.read_table(tmp_path / "t.parquet")
    place = table.column_names.index("document_id")
    numbers = table.set_column(place, "document_id", [[*range(len(TRIPLES))]])
    pq.write_table(numbers, tmp_path / "t.parquet")
    read = read_triples(tmp_path / "t.parquet")
    assert [triple.document_id for triple in read] == [str(number) for number in range(len(TRIPLES))]


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
    mined = summarize_mined(extraction)
    assert (mined.documents, mined.annotated, mined.faithful, mined.triples) == (4, 2, 3, 2)
    assert mined.document_outcomes == {"exact": 2, "unannotated": 1, "changed": 1}
    assert mined.rationale_outcomes == {"clean": 2, "stray": 1}
    filtered = summarize_filtered(FILTERED)
    assert (filtered.rationales, filtered.kept) == (2, 1)
    assert filtered.reasons == {"gain": 1, "too_long": 1}
    assert {source: counts[1:] for source, counts in filtered.taus.items()} == {
        source: (
            sum(t.kept for t in FILTERED if t.source == source),
            sum(t.source == source for t in FILTERED),
        )
        for source in {t.source for t in FILTERED}
    }


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
