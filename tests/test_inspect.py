"""The stage `inspect`: rationales beside human ones, those of other documents, and an empty phrase."""

import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_files import rationalyst, triple

from rationalyst_jax.mine import likelihood_filter
from rationalyst_jax.mine.explanations import read_explanations
from rationalyst_jax.mine.store import Provenance, write_filtered, write_triples
from rationalyst_jax.mine.triple_files import read_triple_files
from rationalyst_jax.mine.triples import Triple
from rationalyst_jax.pipeline.inspect import EMPTY_PHRASE, alternatives
from rationalyst_jax.report.plots import gain_histogram
from rationalyst_jax.world.corpus import documents, explanations
from rationalyst_jax.world.vocabulary import make_tokenizer

SCORED = "--model {}/model --prompts world --filter.row_length 128 --filter.rows_per_batch 2 --filter.block 2"
RATIONALES = ("add 1", "let us go on", "Ben has 4 apples in all [b]")


@pytest.fixture
def here(files: Path, tmp_path, monkeypatch) -> Path:
    """Six documents with two rationales each, as `mine` writes them, and explanations of four places."""
    found = [
        replace(_plain(f"d{i}", index), rationale=f"{RATIONALES[(i + index) % 3]}")
        for i in range(6)
        for index in range(2)
    ]
    write_triples(tmp_path / "triples.parquet", found, Provenance("annotator", "world-1", {}))
    human = [{"id": f"d{i}", "explanation": f"Ben has one more {i}"} for i in range(2)]
    _write_rows(tmp_path / "human.jsonl", human)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def _plain(document: str, index: int) -> Triple:
    filtered = triple(document, index, 0.0)
    return Triple(**{name: getattr(filtered, name) for name in Triple.__dataclass_fields__})


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_gains_are_those_that_the_filter_writes(here, files, capsys):
    options = SCORED.format(files)
    assert rationalyst(f"filter --triples triples.parquet --out filtered.parquet {options}") == 0
    inspect = f"inspect --rationales filtered.parquet --human human.jsonl --out x.jsonl {options}"
    assert rationalyst(inspect) == 0
    filtered = pq.read_table("filtered.parquet").to_pylist()
    rows = _rows(here / "x.jsonl")
    assert [(r["document_id"], r["index"]) for r in rows] == [
        (f["document_id"], f["index"]) for f in filtered
    ]
    # Float32 sums of up to 12 nats: what is computed beside them decides the last bits.
    gains = [f["gain"] for f in filtered]
    assert [r["gains"]["mined"] for r in rows] == pytest.approx(gains, rel=1e-5, abs=1e-5)
    assert ["mined" in r["kept"] for r in rows] == [f["kept"] for f in filtered]
    # Every alternative gains what the filter says of a rationale with its text.
    for name in ("human", "shuffled", "repeated", "empty"):
        having = [r for r in rows if name in r["texts"]]
        texts = {(r["document_id"], r["index"]): r["texts"][name] for r in having}
        put = [
            replace(t, rationale=texts[t.document_id, t.index])
            for t in read_triple_files(here / "triples.parquet")
            if (t.document_id, t.index) in texts
        ]
        write_triples(here / f"{name}.parquet", put, Provenance("annotator", "world-1", {}))
        assert rationalyst(f"filter --triples {name}.parquet --out {name}_filtered.parquet {options}") == 0
        expected = pq.read_table(f"{name}_filtered.parquet")["gain"].to_pylist()
        assert [r["gains"][name] for r in having] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert sum("human" in r["texts"] for r in rows) == 4
    assert {r["texts"]["empty"] for r in rows} == {EMPTY_PHRASE}
    triples = {(t.document_id, t.index): t for t in read_triple_files(here / "triples.parquet")}
    for r in rows:
        before = triples[r["document_id"], r["index"]].preceding.strip()
        assert r["texts"].get("repeated", "") == re.split(r"(?<=[.?!])\s+|\n+", before)[-1]
    assert not list(here.glob("x.jsonl.*"))  # nothing unfinished, no lock
    assert (here / "x.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    print(out)
    assert "12 rationales of 6 documents" in out and "a person's" in out
    assert "[b]" in out  # text of a rationale, no markup


def test_whether_an_alternative_is_kept_is_a_matter_of_its_gain_alone(here, files):
    options = SCORED.format(files)
    inspect = "inspect --rationales triples.parquet --out"
    assert rationalyst(f"{inspect} all.jsonl {options}") == 0
    lots = "--filter.keep random --filter.share 0.25"
    assert rationalyst(f"{inspect} share.jsonl {options} {lots}") == 0
    assert [r["kept"] for r in _rows(here / "share.jsonl")] == [r["kept"] for r in _rows(here / "all.jsonl")]
    assert any(r["kept"] for r in _rows(here / "all.jsonl"))


def test_the_shuffled_rationale_is_never_of_its_own_document_and_otherwise_any():
    found = [
        replace(_plain(f"d{i}", index), rationale=f"d{i}-{index}", source="web" if i < 4 else "math")
        for index in range(3)
        for i in range(7)
    ]
    drawn = Counter()
    for seed in range(200):
        texts = alternatives(found, [None] * len(found), seed)
        for t, of in zip(found, texts, strict=True):
            drawn[t.document_id, of["shuffled"]] += 1
            assert of["shuffled"].split("-")[0] != t.document_id
            assert (int(of["shuffled"][1]) < 4) == (t.source == "web")  # of the same source
    # A document of web draws among 9 rationales, one of math among 6; 600 times.
    assert len(drawn) == 4 * 9 + 3 * 6
    assert all(30 < count < 110 for (name, _), count in drawn.items() if name < "d4")
    assert all(60 < count < 150 for (name, _), count in drawn.items() if name >= "d4")
    assert alternatives(found, [None] * len(found), 3) == alternatives(found, [None] * len(found), 3)
    assert alternatives(found, [None] * len(found), 3) != alternatives(found, [None] * len(found), 4)


def test_the_only_document_of_a_source_has_no_shuffled_rationale():
    found = [_plain("d", 0), _plain("d", 1)]
    assert [set(of) for of in alternatives(found, ["because", None], 0)] == [
        {"mined", "human", "repeated", "empty"},
        {"mined", "repeated", "empty"},
    ]


@pytest.mark.parametrize("left", [0, 1, 3, 3.5])
def test_a_killed_run_continues_with_the_same_bytes(here, files, left, monkeypatch, capsys):
    command = f"inspect --rationales triples.parquet --out {{}} {SCORED.format(files)}"
    assert rationalyst(command.format("whole.jsonl")) == 0

    def killed(*arguments):
        raise ValueError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("rationalyst_jax.pipeline.inspect._draw", killed)
        assert rationalyst(command.format("x.jsonl")) == 1
    scores = here / "x.jsonl.scores.jsonl"
    lines = scores.read_bytes().splitlines(keepends=True)
    scores.write_bytes(b"".join(lines[: int(left)]) + (lines[3][:9] if left % 1 else b""))
    asked = []
    score = likelihood_filter.score
    monkeypatch.setattr(
        likelihood_filter,
        "score",
        lambda model, groups, **how: asked.extend(groups) or score(model, groups, **how),
    )
    assert rationalyst(command.format("x.jsonl")) == 0
    assert len(asked) == 6 - int(left) // 2 * 2  # blocks of two documents
    assert (here / "x.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()
    assert not scores.exists()
    capsys.readouterr()


def test_work_with_other_settings_is_not_continued(here, files, monkeypatch, capsys):
    command = f"inspect --rationales triples.parquet --out x.jsonl {SCORED.format(files)}"
    monkeypatch.setattr("rationalyst_jax.pipeline.inspect._draw", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rationalyst(command)
    assert rationalyst(f"{command} --filter.decay 0.5") == 1
    assert "made with other settings: filter.decay 0.9 -> 0.5" in capsys.readouterr().err


def test_without_a_model_words_alone_are_judged(here, capsys):
    rows = [
        {"preceeding": "Ann has 3 apples. ", "rationale": "let us go on", "following": "2 + 1 = 4 pears. "},
        {
            "preceeding": "Ann has 3 apples. 2 + 1 = 4 pears. ",
            "rationale": "so it is 9",
            "following": "It = 9",
        },
        {"preceeding": "Ben ran ", "rationale": "since ice is slippery", "following": "and fell."},
    ]
    _write_rows(here / "authors.jsonl", rows)
    assert rationalyst("inspect --rationales authors.jsonl --out x.jsonl") == 0
    found = _rows(here / "x.jsonl")
    assert [(r["document_id"], r["index"], r["source"]) for r in found] == [
        ("authors-1", 0, "authors"),
        ("authors-1", 1, "authors"),
        ("authors-3", 0, "authors"),
    ]
    assert [r["faults"]["mined"] for r in found] == [["vacuous"], ["leaks", "new_number"], []]
    assert all(r["gains"] == {} and r["kept"] == [] for r in found)
    assert not (here / "x.png").exists()
    assert "gain of the following" not in capsys.readouterr().out


def test_an_infinite_interval_is_not_printed_as_one(here, files, capsys):
    _write_rows(here / "one.jsonl", [{"preceding": "Ann ", "rationale": "add", "following": "has 3 apples."}])
    assert rationalyst(f"inspect --rationales one.jsonl --out x.jsonl {SCORED.format(files)}") == 0
    out = capsys.readouterr().out
    assert "one document" in out and "inf" not in out


def test_a_blank_text_is_continued_by_none(here):
    rows = [
        {"preceding": text, "rationale": "add", "following": "c"} for text in ("", "A b. ", " ", "A b. C ")
    ]
    _write_rows(here / "some.jsonl", rows)
    found = read_triple_files(here / "some.jsonl")
    assert [t.document_id for t in found] == ["some-1", "some-2", "some-3", "some-2"]


BAD_ROWS = {
    '{"preceding": "a ", "rationale": "b", "following": "c", "index": 2147483648}': "from 0 to 2**31 - 1",
    "{}": "bad.jsonl:1: no 'preceding'",
    '{"preceding": "a ", "rationale": " ", "following": "c"}': "bad.jsonl:1: 'rationale' is empty",
    '{"preceding": "a ", "rationale": "b", "following": ""}': "bad.jsonl:1: 'following' is empty",
    '{"preceding": "a ", "rationale": 3, "following": "c"}': "bad.jsonl:1: 'rationale' must be text, found 3",
    '{"preceding": "a ", "rationale": "b", "following": "c", "index": "0"}': "'index' must be an integer",
    "nonsense": "bad.jsonl:1: not JSON",
    "": "bad.jsonl: holds no rows",
}
BAD_EXPLANATIONS = {
    '{"explanation": "a"}': "human.jsonl:1: no 'question_id'",
    '{"id": "d0"}': "human.jsonl:1: no 'explanation'",
    '{"id": "d0", "explanation": 3}': "human.jsonl:1: 'explanation' must be text, found 3",
    '{"id": "d0", "explanation": "a", "start": 1.5}': "human.jsonl:1: 'start' must be an integer, found 1.5",
    '{"id": "d0", "explanation": " "}': "human.jsonl: all explanations are empty",
    '{"id": "d0", "explanation": "a"}\n{"id": "d0", "explanation": "b"}': ":2: document 'd0' has two",
    '{"id": "elsewhere", "explanation": "a"}': "human.jsonl: explains document 'elsewhere' and others",
}


@pytest.mark.parametrize("text", BAD_ROWS)
def test_a_bad_rationale_is_named(text, here, capsys):
    (here / "bad.jsonl").write_text(text)
    assert rationalyst("inspect --rationales bad.jsonl --out x.jsonl") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and BAD_ROWS[text] in error
    assert not (here / "x.jsonl").exists()


@pytest.mark.parametrize("text", BAD_EXPLANATIONS)
def test_a_bad_explanation_is_named(text, here, capsys):
    (here / "human.jsonl").write_text(text)
    assert rationalyst("inspect --rationales triples.parquet --human human.jsonl --out x.jsonl") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and BAD_EXPLANATIONS[text] in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rationales nowhere.jsonl --out x.jsonl", "nowhere.jsonl: no such file of rationales"),
        ("--rationales empty --out x.jsonl", "empty: no Parquet file in this folder"),
        ("--rationales triples.parquet --out empty", "empty: is a folder, a file is to be written"),
        ("--rationales triples.parquet --out x.png", "x.png: that is the name of the histogram"),
        ("--rationales triples.parquet --out x.jsonl --model world", "--model and --prompts go together"),
    ],
)
def test_a_bad_option_is_named(options, message, here, capsys):
    (here / "empty").mkdir()
    assert rationalyst(f"inspect {options}") in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_folder_of_shards_is_read_whole(here):
    (here / "shards").mkdir()
    shutil.copy(here / "triples.parquet", here / "shards" / "0.parquet")
    write_filtered(here / "shards/1.parquet", [triple("z", 0, 1.0)], Provenance("a", "b", {}))
    assert len(read_triple_files(here / "shards")) == 13
    shutil.copy(here / "triples.parquet", here / "shards" / "2.parquet")
    with pytest.raises(ValueError, match="shards: rationale 0 of document 'd0' comes twice"):
        read_triple_files(here / "shards")


def test_real_explanations_of_ecqa_and_mmlu_pro_are_read(shared):
    ecqa = read_explanations(shared / "ecqa" / "ecqa_train.jsonl")
    assert len(ecqa) > 7000 and all(start is None for _, start in ecqa)
    mmlu_pro = read_explanations(shared / "mmlu_pro" / "validation.parquet")
    assert len(mmlu_pro) == 70 and not any(text.startswith("A:") for text in mmlu_pro.values())
    assert ("0", None) in mmlu_pro


def test_the_worlds_explanations_stand_before_its_lines():
    texts = {row["id"]: row["text"] for row in documents(5, 30)}
    tokenizer = make_tokenizer()
    right, writer = (list(explanations(5, 30, thinker)) for thinker in ("right", "writer"))
    assert {row["id"] for row in right} == set(texts)
    assert len(right) == len(writer) == sum(text.count("\n") for text in texts.values())
    assert all(texts[row["id"]][row["start"] - 1] == "\n" for row in right)
    assert [row["start"] for row in right] == [row["start"] for row in writer]
    assert 0 < sum(a != b for a, b in zip(right, writer, strict=True)) < len(right)
    assert tokenizer.unk_token_id not in tokenizer.encode(EMPTY_PHRASE)


def test_every_gain_is_in_the_histogram(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    hist = Axes.hist
    monkeypatch.setattr(
        Axes, "hist", lambda self, *given, **how: drawn.append(hist(self, *given, **how)) or drawn[-1]
    )
    rng = np.random.default_rng(0)
    gains = {"mined": [*rng.normal(size=500), 90.0, -90.0], "empty": [0.0] * 7}
    gain_histogram(gains, tmp_path / "x.png")
    for shares, edges, _ in drawn:
        assert math.isclose(sum(shares), 100)
        assert len(edges) < 60 and np.abs(edges).min() < 1e-9 and edges.max() < 10
