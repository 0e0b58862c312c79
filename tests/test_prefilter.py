"""The prefilter against a calculation apart, what it refuses, and what a kill does to it: nothing."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_files import rationalyst
from hypothesis import given
from hypothesis import strategies as st
from random_encoder import save_encoder
from task_rows import original_rows
from transformers import BertModel, PreTrainedTokenizerFast

from rationalyst_jax.files.rows import read_table
from rationalyst_jax.mine import prefilter as stage
from rationalyst_jax.mine.config import PrefilterConfig
from rationalyst_jax.mine.documents import read_documents
from rationalyst_jax.mine.references import (
    calibrated_alpha,
    mean_recall,
    read_references,
    reference_centroids,
)
from rationalyst_jax.mine.windows import NORMALISATIONS, sentence_spans

ALL = ("documents.jsonl", "prefiltered.parquet")
COMMAND = (
    "prefilter --documents documents.jsonl --encoder encoder --out {} --references gsm8k=train.jsonl "
    "proofwriter=train=facts.json --prefilter.workers {} --prefilter.block 4 --prefilter.batch_tokens 256"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, two sets of references of very different sizes, and documents short and long."""
    root = tmp_path_factory.mktemp("prefilter")
    save_encoder(root / "encoder")
    rng = np.random.default_rng(0)

    def text(words: int) -> str:
        return " ".join(
            "".join(rng.choice(list("abcdefgh12"), 5)) + ".?, "[rng.integers(4)] for _ in range(words)
        )

    questions = [{"question": text(5), "answer": f"{text(3)}\n#### {i}"} for i in range(6)]
    documents = [
        {"id": f"d{i}", "text": text(int(rng.integers(1, 60))), "source": f"s{i % 3}"} for i in range(11)
    ]
    for name, rows in {"train": questions, "documents": documents}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "facts.json").write_text(json.dumps(original_rows("proofwriter", "train", 40)))
    return root


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")


def test_documents_are_judged_as_a_calculation_apart_does(folder, capsys):
    assert rationalyst(COMMAND.format("apart", 1)) == 0
    out = capsys.readouterr().out
    table = pq.read_table("apart/prefiltered.parquet")
    made_by = json.loads(table.schema.metadata[b"prefilter"])
    rows = table.to_pylist()
    documents = read_documents(folder / "documents.jsonl")
    assert [(row["id"], row["source"]) for row in rows] == [(d.id, d.source) for d in documents]

    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    model = BertModel.from_pretrained(folder / "encoder").eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "encoder" / "tokenizer.json"))

    def vector(text: str) -> np.ndarray:
        with torch.no_grad():
            mean = model(torch.tensor([tokens(text)])).last_hidden_state[0].mean(0).numpy()
        return mean / np.linalg.norm(mean)

    def tokens(text: str) -> list[int]:
        return tokenizer(NORMALISATIONS["paper"](text), truncation=False)["input_ids"]

    def fits(text: str) -> bool:
        return len(tokens(text)) <= 128

    sets = read_references({"gsm8k": "train.jsonl", "proofwriter": "train=facts.json"}, 2000, 0.2, 0)
    assert [(len(one.texts), len(one.held_out)) for one in sets] == [(5, 1), (32, 8)]
    assert all(fits(text) for one in sets for text in one.texts)  # so each is one window
    means = [np.mean([vector(text) for text in one.texts], axis=0) for one in sets]
    centroids = np.stack([mean / np.linalg.norm(mean) for mean in means])
    centre = centroids.mean(0) / np.linalg.norm(centroids.mean(0))
    for row, document in zip(rows, documents, strict=True):
        window = vector(document.text[row["start"] : row["end"]])
        assert row["cosine"] == pytest.approx(window @ centre, abs=1e-5)
        assert row["nearest"] == sets[int((centroids @ window).argmax())].name
        assert row["kept"] == (row["cosine"] >= made_by["alpha"])
        if fits(document.text):
            assert (row["start"], row["end"]) == (0, len(document.text))
        else:
            assert row["end"] - row["start"] < len(document.text)
    kept = [row["id"] for row in rows if row["kept"]]
    assert [document.id for document in read_documents("apart/documents.jsonl")] == kept
    assert f"alpha {made_by['alpha']:.3f} (calibrated)" in out
    for source in ("s0", "s1", "s2"):
        of_source = [row for row in rows if row["source"] == source]
        share = 100 * np.mean([row["kept"] for row in of_source])
        assert f"{source} {len(of_source)} {sum(row['kept'] for row in of_source)} {share:.1f}" in " ".join(
            out.split()
        )


def test_how_many_processes_tokenize_decides_nothing():
    assert PrefilterConfig(workers=3).decides() == PrefilterConfig().decides()
    assert {*PrefilterConfig().decides()} == {field.name for field in fields(PrefilterConfig)} - {"workers"}


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(folder, blocks, monkeypatch):
    for out, workers in (("undisturbed", 0), ("with_workers", 2)):
        assert rationalyst(COMMAND.format(out, workers)) == 0
    with monkeypatch.context() as killed:
        left = iter(range(blocks))

        def append(path, rows):
            if next(left, None) is None:
                with path.open("ab") as file:
                    file.write(b'{"number": 3, "te')  # half a row
                raise KeyboardInterrupt
            append_rows(path, rows)

        append_rows = stage.append_rows
        killed.setattr(stage, "append_rows", append)
        assert rationalyst(COMMAND.format(f"killed{blocks}", 1)) == 130
    assert not (folder / f"killed{blocks}" / "documents.jsonl").exists()
    scored = []
    begin = stage.TextEncoder._begin
    monkeypatch.setattr(
        stage.TextEncoder, "_begin", lambda self, of: (scored.append(len(of)), begin(self, of))[1]
    )
    assert rationalyst(COMMAND.format(f"killed{blocks}", 0)) == 0
    assert sum(scored) == 46 + 11 - 4 * blocks  # references, and what documents were left
    for name in ALL:
        expected = (folder / "undisturbed" / name).read_bytes()
        assert (folder / f"killed{blocks}" / name).read_bytes() == expected
        assert (folder / "with_workers" / name).read_bytes() == expected
    assert sorted(path.name for path in (folder / f"killed{blocks}").iterdir()) == sorted(ALL)


def test_a_run_with_other_settings_or_references_is_refused_and_loses_nothing(folder, monkeypatch, capsys):
    def stop(path, rows):
        append_rows(path, rows)
        raise KeyboardInterrupt

    append_rows = stage.append_rows
    with monkeypatch.context() as killed:
        killed.setattr(stage, "append_rows", stop)
        assert rationalyst(COMMAND.format("others", 0)) == 130
    before = (folder / "others" / "scores.partial.jsonl").read_bytes()
    for change, message in {
        "--prefilter.normalisation none": "prefilter.normalisation 'paper' -> 'none'",
        "--prefilter.seed 1": "references.gsm8k",
        "--prefilter.window 32": "prefilter.window 128 -> 32",
    }.items():
        assert rationalyst(f"{COMMAND.format('others', 0)} {change}") == 1
        assert message in capsys.readouterr().err
    assert (folder / "others" / "scores.partial.jsonl").read_bytes() == before


def test_alpha_may_be_given_and_the_nearest_set_be_asked(folder, capsys):
    given_alpha = f"{COMMAND.format('given', 0)} --prefilter.alpha -1 --prefilter.centroids nearest"
    assert rationalyst(given_alpha) == 0
    assert "alpha -1.000 (given)" in capsys.readouterr().out
    assert len(read_documents(folder / "given" / "documents.jsonl")) == 11
    assert rationalyst(COMMAND.format("mean", 0)) == 0
    nearest, mean = (pq.read_table(f"{out}/prefiltered.parquet")["cosine"] for out in ("given", "mean"))
    assert nearest != mean
    assert rationalyst(f"{COMMAND.format('none', 0)} --prefilter.alpha 1") == 0
    assert (folder / "none" / "documents.jsonl").read_bytes() == b""
    assert pq.read_table("none/prefiltered.parquet").num_rows == 11


COSINES = st.dictionaries(
    st.sampled_from("abc"), st.lists(st.floats(-1, 1).map(lambda x: round(x, 1)), min_size=1), min_size=1
)


@given(COSINES, st.floats(0.01, 1))
def test_alpha_is_the_largest_threshold_with_the_wanted_recall(cosines, recall):
    alpha = calibrated_alpha(cosines, recall)
    larger = [cosine for of_set in cosines.values() for cosine in of_set if cosine > alpha]
    assert mean_recall(cosines, alpha) >= recall
    assert all(mean_recall(cosines, other) < recall for other in larger)


def test_each_set_weighs_the_same_however_many_texts_it_has_and_how_alike_they_are(tmp_path):
    rng = np.random.default_rng(0)
    alike = np.array([1.0, 0, 0, 0]) + 0.01 * rng.normal(size=(20, 4))
    apart = np.array([0, 1.0, 0, 0]) + 0.7 * rng.normal(size=(10, 4))
    vectors = [x[None] / np.linalg.norm(x) for x in (*alike, *apart)]
    for rows, name in ((40, "gsm8k"), (20, "math")):
        write_set(tmp_path, name, rows)
    sets = read_references({n: f"{tmp_path}/{n}_train.jsonl" for n in ("gsm8k", "math")}, 2000, 0.5, 0)
    texts = [text for one in sets for text in one.texts]
    found = reference_centroids(sets, dict(zip(texts, vectors, strict=True)), "mean")
    mean_D = found.centroids_SD.mean(0)
    both = found.centroids_SD @ mean_D / np.linalg.norm(mean_D)
    assert both[0] == pytest.approx(both[1])
    assert np.linalg.norm(found.centroids_SD, axis=1) == pytest.approx(1)


def write_set(folder: Path, task: str, rows: int) -> None:
    lines = (json.dumps(row) + "\n" for row in original_rows(task, "train", rows))
    (folder / f"{task}_train.jsonl").write_text("".join(lines))


def test_references_are_of_training_splits_and_some_are_held_out(tmp_path):
    write_set(tmp_path, "gsm8k", 50)
    source = f"{tmp_path}/gsm8k_train.jsonl"
    [one] = read_references({"gsm8k": source}, 2000, 0.2, 0)
    assert len(one.held_out) == 10 and len({*one.texts, *one.held_out}) == 50
    assert one.texts[0].startswith("Ünal has ") and "####" not in one.texts[0] and "<<" not in one.texts[0]
    [few] = read_references({"gsm8k": source}, 7, 0.0, 0)
    assert (len(few.texts), len(few.held_out)) == (6, 1)
    [others] = read_references({"gsm8k": source}, 7, 0.0, 1)
    assert few.held_out != others.held_out
    with pytest.raises(ValueError, match="split 'test': references are of train alone"):
        read_references({"gsm8k": f"test={source}"}, 2000, 0.2, 0)
    (tmp_path / "one_train.jsonl").write_text((tmp_path / "gsm8k_train.jsonl").read_text().split("\n")[0])
    with pytest.raises(
        ValueError, match=r"one_train\.jsonl: holds 1 question of gsm8k, at least two are needed"
    ):
        read_references({"gsm8k": f"{tmp_path}/one_train.jsonl"}, 2000, 0.2, 0)


def test_of_a_file_with_several_splits_the_training_rows_alone_are_references(tmp_path):
    rows = original_rows("ecqa", "train", 2) + original_rows("ecqa", "test", 3)
    file = tmp_path / "train.jsonl"  # whatever its name says
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [one] = read_references({"ecqa": str(file)}, 2000, 0.2, 0)
    assert len(one.texts + one.held_out) == 2 and all("2000" not in text for text in one.texts)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[2:]))
    with pytest.raises(ValueError, match="questions of ecqa's split 'test': references are of train alone"):
        read_references({"ecqa": str(file)}, 2000, 0.2, 0)


def test_a_document_longer_than_a_window_counts_as_its_best_window(folder):
    assert rationalyst(f"{COMMAND.format('windows', 0)} --prefilter.window 16") == 0
    rows = pq.read_table("windows/prefiltered.parquet").to_pylist()
    long = [(place, row) for place, row in read_table(folder / "documents.jsonl") if len(row["text"]) > 200]
    assert long
    for _, document in long:
        [row] = [row for row in rows if row["id"] == document["id"]]
        starts = {start for start, _ in sentence_spans(document["text"])}
        assert row["end"] - row["start"] < 120
        assert row["start"] in starts or " " in document["text"][row["start"] - 1 : row["start"]]
