"""Duplicates of documents: signatures against exact similarities, decisions against brute force."""

import gzip
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.mine.config import DedupConfig
from rationalyst_jax.mine.deduplicate import find_duplicates, sign, sign_shard
from rationalyst_jax.mine.documents import Document, read_documents
from rationalyst_jax.mine.minhash import Banding, MinHash, banding
from rationalyst_jax.mine.shards import find_shards, read_verdicts
from rationalyst_jax.mine.words import normalized, words_of
from rationalyst_jax.pipeline.dedup import dedup
from rationalyst_jax.pipeline.shards import fingerprints

CONFIG = DedupConfig()
BANDS = banding(CONFIG.similarity, CONFIG.hashes)
LETTERS = str.maketrans("0123456789", "abcdefghij")


def shingles(text: str, length: int = CONFIG.shingle) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def jaccard(a: str, b: str) -> float:
    one = shingles(a)
    other = shingles(b)
    return len(one & other) / len(one | other)


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(str(i), text, "web") for i, text in enumerate(texts)]


def originals(texts: Sequence[str], config: DedupConfig = CONFIG) -> list[int]:
    signed = sign(documents(texts), config)
    bands = banding(config.similarity, config.hashes)
    return find_duplicates(signed.text_hashes_N, signed.signatures_NP, bands).original_N.tolist()


def pair(size: int, similarity: float, seed: int) -> tuple[list[str], list[str], float]:
    """Two sets of words of about this similarity, and the exact one."""
    both = round(2 * size * similarity / (1 + similarity))
    own = size - both
    words = [f"{seed}x{i}".translate(LETTERS) for i in range(both + 2 * own)]
    return words[: both + own], words[:both] + words[both + own :], both / (both + 2 * own)


# ---- Words ----


def test_words_are_numbers_and_runs_of_letters_without_case():
    text = "Don't pay $1,000.50, or 2,3: <<48/2=24>>24 ½ ﬁne STRASSE Straße x_1 h2o 12,3456"
    assert words_of(text) == (
        "don t pay 1000.50 or 2 3 48 2 24 24 1 2 fine strasse strasse x 1 h 2 o 12 3456".split()
    )


def test_characters_of_languages_without_spaces_are_words():
    assert words_of("東京は broad") == ["東", "京", "は", "broad"]


def test_normalized_texts_differ_by_more_than_case_and_white_space():
    assert normalized("A  b\n\tC") == normalized("a B c") != normalized("a b, c")


# ---- Signatures ----


@pytest.mark.parametrize(("size", "similarity"), [*itertools.product((20, 300, 3000), (0.3, 0.75, 0.95))])
def test_signatures_agree_as_often_as_sets_are_similar(size, similarity):
    places = banding(0.75, 128).places
    agreeing = []
    for seed in range(40):
        one, other, exact = pair(size, similarity, seed)
        hashes = MinHash(places, 1, seed)
        agreeing.append(np.mean(hashes.signature(one, 0) == hashes.signature(other, 0)))
        expected = exact + (1 - exact) / 256
    deviation = (expected * (1 - expected) / (places * len(agreeing))) ** 0.5
    assert abs(np.mean(agreeing) - expected) < 4 * deviation


def test_signatures_of_real_texts_estimate_their_similarity(shared):
    rows = [json.loads(line) for line in (shared / "gsm8k" / "train.jsonl").read_text().splitlines()[:40]]
    bands = banding(CONFIG.similarity, CONFIG.hashes)
    errors = []
    for row in rows:
        words = row["question"].split()
        edited = [*words[:5], "indeed", *words[5:-3]]
        one, other = sign(documents([row["question"], " ".join(edited)]), CONFIG).signatures_NP
        exact = jaccard(row["question"], " ".join(edited))
        errors.append(
            (bands.similarity(np.sum(one == other)) - exact) / (exact * (1 - exact) / bands.places) ** 0.5
        )
    assert abs(np.mean(errors)) < 4 / len(errors) ** 0.5 and 0.6 < np.std(errors) < 1.5


def test_a_seed_gives_the_same_signatures_on_every_machine():
    signature = MinHash(6, 2, seed=7).signature(["ann", "has", "3", "apples"], 0)
    assert signature.tolist() == [93, 66, 63, 180, 45, 208]


# ---- Bands ----


def patterns(bands: Banding) -> list[tuple[int, bool]]:
    """Of every set of places in which two signatures may agree: how many there are, and whether they hold a
    band."""
    found = []
    for agree in itertools.product((False, True), repeat=bands.places):
        whole = any(all(agree[i : i + bands.rows]) for i in range(0, bands.places, bands.rows))
        found.append((sum(agree), whole))
    return found


@pytest.mark.parametrize("bands", [Banding(4, 3, 0), Banding(3, 4, 9), Banding(12, 1, 5), Banding(2, 5, 8)])
@pytest.mark.parametrize("similarity", [0.0, 0.3, 0.8, 1.0])
def test_the_probability_to_be_found_is_that_of_all_patterns(bands, similarity):
    p = similarity + (1 - similarity) / 256
    share = {n: p**n * (1 - p) ** (bands.places - n) for n in range(bands.places + 1)}
    every = patterns(bands)
    candidates = sum(share[n] for n, whole in every if whole)
    found = sum(share[n] for n, whole in every if whole and n >= bands.needed)
    assert bands.candidate_probability(similarity) == pytest.approx(candidates, abs=1e-12)
    assert bands.found_probability(similarity) == pytest.approx(found, abs=1e-12)


@given(similarity=st.floats(0.3, 1.0), hashes=st.integers(16, 256))
def test_bands_are_as_strict_as_the_wanted_recall_allows(similarity, hashes):
    bands = banding(similarity, hashes)
    assert hashes - bands.rows < bands.places <= hashes
    assert bands.candidate_probability(similarity) >= 0.95 or bands.rows == 1
    if bands.rows < 8:
        stricter = Banding(hashes // (bands.rows + 1), bands.rows + 1, 0)
        assert stricter.candidate_probability(similarity) < 0.95


@given(similarity=st.floats(0.3, 0.95), hashes=st.integers(32, 256))
def test_the_more_similar_the_likelier_to_be_found(similarity, hashes):
    bands = banding(similarity, hashes)
    found = [bands.found_probability(s) for s in np.linspace(0, 1, 21)]
    assert np.all(np.diff(found) >= -1e-12) and found[-1] == pytest.approx(1)
    assert 0.3 < bands.found_probability(similarity) < 0.8


def test_pairs_are_found_as_often_as_the_curve_says():
    bands = banding(CONFIG.similarity, CONFIG.hashes)
    for similarity in (0.7, 0.75, 0.8):
        found = 0
        for seed in range(150):
            one, other, exact = pair(200, similarity, seed)
            config = DedupConfig(shingle=1, seed=seed)
            found += originals([" ".join(one), " ".join(other)], config) == [-1, 0]
        expected = bands.found_probability(exact)
        assert abs(found / 150 - expected) < 4 * (expected * (1 - expected) / 150) ** 0.5


# ---- Which documents go ----


@st.composite
def signatures(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Banding]:
    """Of up to 12 documents, many of them alike."""
    bands = Banding(draw(st.integers(1, 4)), draw(st.integers(1, 3)), 0)
    count = draw(st.integers(0, 12))
    flat = draw(st.lists(st.integers(0, 2), min_size=count * bands.places, max_size=count * bands.places))
    hashes = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    needed = draw(st.integers(1, bands.places))
    return (
        np.array(hashes, np.uint64),
        np.array(flat, np.uint8).reshape(count, bands.places),
        Banding(bands.bands, bands.rows, needed),
    )


@given(signatures())
@settings(max_examples=300)
def test_a_document_goes_when_an_earlier_kept_one_is_alike(made):
    text_hashes, signed, bands = made
    expected: list[int] = []
    for i, signature in enumerate(signed):
        alike = []
        for j in range(i):
            agree = signature == signed[j]
            in_a_band = agree.reshape(bands.bands, bands.rows).all(1).any()
            if expected[j] < 0 and in_a_band and agree.sum() >= bands.needed:
                alike.append((-agree.sum(), text_hashes[i] != text_hashes[j], j))
        expected.append(min(alike)[2] if alike else -1)
    found = find_duplicates(text_hashes, signed, bands)
    assert found.original_N.tolist() == expected
    for i, j in enumerate(expected):
        assert found.exact_N[i] == (j >= 0 and text_hashes[i] == text_hashes[j])
        assert found.agreeing_N[i] == (np.sum(signed[i] == signed[j]) if j >= 0 else 0)


def test_texts_that_differ_in_case_and_white_space_are_the_same():
    signed = sign(documents(["Ann has 3  apples.", "ann HAS 3\napples. "]), CONFIG)
    found = find_duplicates(signed.text_hashes_N, signed.signatures_NP, BANDS)
    assert found.original_N.tolist() == [-1, 0] and found.exact_N.tolist() == [False, True]


def test_texts_that_differ_in_punctuation_alone_are_near_duplicates():
    signed = sign(documents(["Ann has 3 apples.", "Ann has 3 apples?", "Ann has 3 apples?"]), CONFIG)
    found = find_duplicates(signed.text_hashes_N, signed.signatures_NP, BANDS)
    assert found.original_N.tolist() == [-1, 0, 0] and not found.exact_N.any()


def test_a_number_makes_short_texts_differ():
    assert originals(["Ann has 3 apples.", "Ann has 4 apples."]) == [-1, -1]


def test_texts_without_words_are_duplicates_only_where_they_are_the_same():
    assert originals(["!!!", "???", "!!! ", "a", "b"]) == [-1, -1, 0, -1, -1]


def test_no_chain_of_likenesses_makes_a_document_go():
    words = [f"x{i}".translate(LETTERS) for i in range(140)]
    texts = [" ".join(words[first : first + 100]) for first in (0, 10, 20)]
    assert jaccard(texts[0], texts[1]) > 0.8 > 0.7 > jaccard(texts[0], texts[2])
    assert originals(texts) == [-1, 0, -1]


# ---- Shards ----


TEXT = "The market opens at nine, and {} sells {} baskets of apples before the rain begins at noon."
SHARDS = {
    "a": [TEXT.format("Ann", 3), "Something else entirely stands here, about rivers and their mouths."],
    "b": [],
    "c": [TEXT.format("Ann", 3).upper(), TEXT.format("Ben", 3), "A third text, on the colors of birds."],
    "d": [TEXT.format("Ann", 3), TEXT.format("Ann", 3) + " Thanks for reading."],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, texts in SHARDS.items():
        write_rows(
            tmp_path / "in" / f"{name}.jsonl", [{"text": text, "n": i} for i, text in enumerate(texts)]
        )
    return tmp_path / "in"


def written(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_first_of_like_documents_stays_in_its_row(folder, tmp_path):
    outcomes = dedup(folder, CONFIG, tmp_path / "out")
    assert outcomes == {"in": {"kept": 4, "exact_duplicate": 2, "near_duplicate": 1}}
    kept = (tmp_path / "out" / "documents" / "c.jsonl").read_text().splitlines()
    assert json.loads(kept[0]) == {"id": "c-2", "text": SHARDS["c"][1], "source": "in"}
    first, second = read_verdicts(tmp_path / "out" / "verdicts" / "d.jsonl")
    original = {"source": "in", "kept": False, "original": "a-1", "original_shard": "a"}
    assert first == original | {"id": "d-1", "reason": "exact_duplicate", "similarity": 1.0}
    near = second.pop("similarity")
    assert second == original | {"id": "d-2", "reason": "near_duplicate"}
    assert near == pytest.approx(jaccard(SHARDS["a"][0], SHARDS["d"][1]), abs=0.15)


def test_the_order_in_which_shards_are_signed_changes_no_byte(folder, tmp_path):
    dedup(folder, CONFIG, tmp_path / "one")
    shards = find_shards(folder)
    made_of = fingerprints(shards)
    for shard in reversed(shards):
        path = tmp_path / "other" / "signatures" / f"{shard.name}.parquet"
        sign_shard(shard, made_of[shard.name], CONFIG, path)
    dedup(folder, CONFIG, tmp_path / "other")
    assert written(tmp_path / "one") == written(tmp_path / "other")


@pytest.mark.parametrize("last", ["signatures/c.parquet", "done/a.json", "documents/c.jsonl", "dedup.json"])
def test_a_killed_run_continues_to_the_same_bytes(folder, tmp_path, monkeypatch, last):
    dedup(folder, CONFIG, tmp_path / "whole")
    out = tmp_path / "out"
    replace = os.replace

    def killed(source, target):
        if str(target) == str(out / last):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            dedup(folder, CONFIG, out)
    before = written(out)
    dedup(folder, CONFIG, out)
    assert written(out) == written(tmp_path / "whole")
    assert before.items() <= written(out).items()


def test_finished_shards_are_not_divided_again(folder, tmp_path):
    dedup(folder, CONFIG, tmp_path / "out")
    (tmp_path / "out" / "documents" / "a.jsonl").unlink()
    dedup(folder, CONFIG, tmp_path / "out")
    assert not (tmp_path / "out" / "documents" / "a.jsonl").exists()


def test_work_begun_with_other_settings_is_refused(folder, tmp_path):
    out = tmp_path / "out"
    dedup(folder, CONFIG, out)
    with pytest.raises(ValueError, match=r"dedup\.config\.json: made with other settings: dedup\.similarity"):
        dedup(folder, DedupConfig(similarity=0.9), out)


def test_shards_that_have_changed_or_gone_are_done_again(folder, tmp_path):
    out = tmp_path / "out"
    dedup(folder, CONFIG, out)
    (folder / "a.jsonl").write_text('{"text": "another"}\n')
    write_rows(folder / "z.jsonl", [{"text": "gone soon"}])
    assert dedup(folder, CONFIG, out)["in"]["kept"] == 5
    (folder / "z.jsonl").unlink()
    assert dedup(folder, CONFIG, out) == {"in": {"kept": 4, "exact_duplicate": 1, "near_duplicate": 1}}
    dedup(folder, CONFIG, tmp_path / "whole")
    assert written(out) == written(tmp_path / "whole")


def test_an_output_in_the_folder_that_is_read_is_refused(folder):
    with pytest.raises(ValueError, match=r"out: lies in .*, which is read: write elsewhere"):
        dedup(folder, CONFIG, folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("written", ["documents", "documents/b.jsonl"])
def test_documents_that_would_be_replaced_are_refused(folder, tmp_path, written):
    out = tmp_path / "out"
    dedup(folder, CONFIG, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(
        ValueError, match=rf"out/{written}: is among what is written to .*out: write elsewhere"
    ):
        dedup(out / written, CONFIG, out)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_malformed_row_is_named_and_what_is_done_stays(folder, tmp_path):
    (folder / "c.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(ValueError, match=r"c\.jsonl:2: 'text' must be text, found 3"):
        dedup(folder, CONFIG, tmp_path / "out")
    assert (tmp_path / "out" / "signatures" / "a.parquet").exists()
    assert not (tmp_path / "out" / "documents").exists()


def test_a_folder_without_documents_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file of documents"):
        dedup(tmp_path / "nowhere", CONFIG, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no file of documents in this folder"):
        dedup(tmp_path / "empty", CONFIG, tmp_path / "out")


def test_shards_of_every_format_and_in_folders_keep_their_names(tmp_path):
    text = {"text": TEXT.format("Ann", 3), "meta": {"pile_set_name": "C4"}}
    (tmp_path / "in" / "a").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([text]), tmp_path / "in" / "a" / "one.parquet")
    with gzip.open(tmp_path / "in" / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps(text) + "\n")
    (tmp_path / "in" / "c.jsonl.gz").write_bytes(gzip.compress(b""))
    assert dedup(tmp_path / "in", CONFIG, tmp_path / "out") == {"C4": {"kept": 1, "exact_duplicate": 1}}
    [verdict] = read_verdicts(tmp_path / "out" / "verdicts" / "b.jsonl")
    assert (verdict["id"], verdict["original"], verdict["original_shard"]) == ("b-1", "a/one-1", "a/one")
    kept = tmp_path / "out" / "documents"
    assert [document.id for document in read_documents(kept)] == ["a/one-1"]
    assert (kept / "c.jsonl").read_bytes() == b""


def test_two_shards_that_would_be_written_to_one_file_are_refused(folder, tmp_path):
    (folder / "a.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"a\.jsonl: what is made of it has the name of what is made of .*a\.json"
    ):
        dedup(folder, CONFIG, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"similarity": 0.0}, "dedup: similarity must be above 0 and at most 1, got 0.0"),
        ({"similarity": float("nan")}, "dedup: similarity must be"),
        ({"shingle": 0}, "dedup: shingle must be at least 1, got 0"),
        ({"hashes": 2000}, "dedup: hashes must be from 1 to 1024, got 2000"),
        ({"seed": -1}, "dedup: seed must be"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DedupConfig(**changes)


# ---- Real documents ----


def replaced(text: str, count: int, rng: random.Random) -> str:
    words = text.split(" ")
    for place in rng.sample(range(len(words)), count):
        words[place] = "something"
    return " ".join(words)


EDITS = {
    "layout": lambda text, rng: text.upper().replace(". ", " ! ").replace("\n", "\n\n"),
    "1 word": lambda text, rng: replaced(text, 1, rng),
    "2 words": lambda text, rng: replaced(text, 2, rng),
    "3 words": lambda text, rng: replaced(text, 3, rng),
    "page": lambda text, rng: f"Home > Worksheets > Grade 4\n{text}\nPosted by admin on May 3. Share this.",
}


def real_documents(shared: Path) -> list[str]:
    """500 problems of GSM8K's training set with their solutions: those of the annotated documents first."""
    lines = (shared / "rationalyst" / "extractor_output.jsonl").read_text().splitlines()
    annotated = [json.loads(line)["input"] for line in lines]
    rows = map(json.loads, (shared / "gsm8k" / "train.jsonl").read_text().splitlines())
    rest = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
    return list(dict.fromkeys([*annotated, *rest]))[:500]


def test_planted_near_duplicates_of_real_documents_are_found_and_nothing_else(shared, tmp_path):
    clean = real_documents(shared)
    rng = random.Random(0)
    kinds = list(EDITS)
    planted = [EDITS[kinds[i % 5]](text, rng) for i, text in enumerate(clean[::5])]
    rows = [{"id": f"clean-{i}", "text": text} for i, text in enumerate(clean)]
    rows += [{"id": f"planted-{i}", "text": text} for i, text in enumerate(planted)]
    write_rows(tmp_path / "in.jsonl", rows)
    dedup(tmp_path / "in.jsonl", CONFIG, tmp_path / "out")
    kept = {document.id for document in read_documents(tmp_path / "out" / "documents" / "in.jsonl")}
    assert kept == {f"clean-{i}" for i in range(500)}
    verdicts = list(read_verdicts(tmp_path / "out" / "verdicts" / "in.jsonl"))
    assert [row["original"] for row in verdicts] == [f"clean-{5 * i}" for i in range(100)]
    assert Counter(row["reason"] for row in verdicts) == {"near_duplicate": 100}
