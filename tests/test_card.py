"""A mined data set for others: `datasets` loads it, every row comes back, and the card tells what it is."""

import json
import re
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.files.whole import write_json
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.mine.data_set import read_data_set
from rationalyst_jax.mine.likelihood_filter import FilteredTriple
from rationalyst_jax.mine.store import Provenance, write_filtered
from rationalyst_jax.pipeline.card import data_set
from rationalyst_jax.train.rationales import kept_rationales

TEXTS = {
    "a": "Ann has 3 apples.\nBen has 4.\nThey have 7.",
    "b": "Birds | sing.\nÉté: they fly south.",
    "c": "x\ny",
}
PLACES = [("a", "gsm8k", 0, 18), ("a", "gsm8k", 1, 29), ("b", "pile", 0, 14), ("c", "pile", 0, 2)]


def triples() -> list[FilteredTriple]:
    found = []
    for number, (document, source, index, start) in enumerate(PLACES):
        later = [s for d, _, i, s in PLACES if d == document and i == index + 1]
        end = later[0] if later else len(TEXTS[document])
        gain = None if document == "c" else 1.0 - number
        found.append(
            FilteredTriple(
                document_id=document,
                source=source,
                index=index,
                start=start,
                end=end,
                preceding=TEXTS[document][:start],
                rationale=f"thought {number}",
                following=TEXTS[document][start:end],
                logprob_without=None if gain is None else -2.0,
                logprob_with=None if gain is None else -2.0 + gain,
                gain=gain,
                tau=0.5 if source == "gsm8k" else -2.0,
                kept=gain is not None and gain >= (0.5 if source == "gsm8k" else -2.0),
                reason="too_long" if gain is None else "gain" if number != 1 else "below_tau",
            )
        )
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[FilteredTriple]:
    """Two files of rationales, of models under different licences, and what other stages recorded."""
    monkeypatch.chdir(tmp_path)
    rows = triples()
    judged = {"filter_model": "models/Llama-3.1-8B", "filter_prompts": "llama3-3"}
    write_filtered("in/one.parquet", rows[:2], Provenance("Meta-Llama-3-8B-Instruct", "llama3-3", judged))
    write_filtered("in/two.parquet", rows[2:], Provenance("world", "world-1", {}))
    write_rows(Path("documents.jsonl"), [{"id": name, "text": text} for name, text in TEXTS.items()])
    outcomes = {"gsm8k": {"kept": 2, "near_duplicate": 1}, "pile": {"exact_duplicate": 3}}
    write_json(Path("unique/dedup.json"), {"outcomes": outcomes})
    counts = {"questions": 9, "too_short": 1, "questions_met": 2, "documents": 3, "documents_masked": 4}
    settings = {"decontaminate": {"ngram": 13, "min_words": 8, "drop_masked": True}}
    recorded = {"settings": settings, "outcomes": {"gsm8k": {"kept": 2}}, "tasks": {"gsm8k": counts}}
    write_json(Path("clean/decontaminate.json"), recorded)
    return rows


def written(**options: Any) -> str:
    options = {"licenses": {}} | options
    readme = data_set(Path("in"), Path("out"), name="thoughts", **options)
    return readme.read_text(encoding="utf-8")


@pytest.mark.parametrize("without_text", [(), ("pile",)])
def test_datasets_loads_both_configs_with_every_row(here, tmp_path, monkeypatch, without_text):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets", reason="lm-eval, of the test extra, brings it")
    written(without_text=without_text)
    for config, expected in (("all", here), ("kept", [row for row in here if row.kept])):
        loaded = datasets.load_dataset("out", config, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(loaded) == len(expected) > 0
        for row, triple in zip(loaded, expected, strict=True):
            values = asdict(triple)
            if triple.source in without_text:
                values |= {"preceding": None, "following": None}
            assert {name: row[name] for name in values} == values
            assert row["document_hash"] == sha256(TEXTS[triple.document_id].encode()).hexdigest()
            assert row["model"] and row["prompt_version"]


def test_what_is_published_is_not_published_again(here):
    written()
    with pytest.raises(ValueError, match=r"one\.parquet: has a column document_hash, so it is published"):
        data_set(Path("out/all"), Path("again"), name="n", licenses={})
    assert not Path("again").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dedup": Path("broken")}, r"broken/dedup\.json: not what dedup wrote: no outcomes"),
        ({"decontaminate": Path("broken")}, r"decontaminate\.json: .*: no outcomes, settings, tasks"),
        ({"prefilter": Path("in/one.parquet")}, r"in/one\.parquet: not what the prefilter wrote"),
        ({"licenses": {"gsm9k": "MIT"}}, "licenses: there is no source or model gsm9k: there are "),
    ],
)
def test_what_other_stages_did_not_write_is_refused_by_name(here, options, told):
    write_json(Path("broken/dedup.json"), {})
    write_json(Path("broken/decontaminate.json"), {})
    with pytest.raises(ValueError, match=told):
        written(**options)
    assert not Path("out").exists()


def test_every_row_comes_back(here):
    written()
    assert read_data_set(Path("out")) == here


def test_rows_without_text_come_back_with_the_documents(here):
    written(without_text=["pile"])
    assert b"they fly south" not in b"".join(path.read_bytes() for path in Path("out").rglob("*.parquet"))
    assert read_data_set(Path("out"), Path("documents.jsonl")) == here
    with pytest.raises(ValueError, match=r"two\.parquet: the text of document 'b' is not here"):
        read_data_set(Path("out"))
    write_rows(Path("documents.jsonl"), [{"id": name, "text": text + "?"} for name, text in TEXTS.items()])
    assert (
        read_data_set(Path("out"), Path("documents.jsonl")) == here
    )  # what follows the last row binds nobody
    write_rows(Path("documents.jsonl"), [{"id": name, "text": f"?{text}"} for name, text in TEXTS.items()])
    with pytest.raises(
        ValueError, match=r"documents\.jsonl: document 'b' is not the one that .*two\.parquet"
    ):
        read_data_set(Path("out"), Path("documents.jsonl"))


def test_fine_tuning_reads_the_kept_rows(here):
    written()
    assert [row["rationale"] for row in kept_rationales("out/kept")] == ["thought 0", "thought 2"]


def test_columns_and_provenance_of_the_files_stay(here):
    table = pq.read_table("in/one.parquet")
    pq.write_table(table.append_column("judged_by", [[1, 2]]), "in/one.parquet")
    written()
    published = pq.read_table("out/all/one.parquet")
    assert published["judged_by"].to_pylist() == [1, 2]
    assert published.schema.metadata == table.schema.metadata
    made_how = ["base", "method", "places", "candidates", "round", "scorer"]
    assert published.column_names == [*table.column_names, "judged_by", "document_hash", *made_how]
    [row, _] = published.select(made_how).to_pylist()
    judge = "models/Llama-3.1-8B"
    assert row == dict(zip(made_how, (None, "imported", None, None, None, judge), strict=True))


def test_rows_tell_how_they_were_inserted_and_how_near_their_documents_are(here):
    how = asdict(AnnotateConfig(method="insert", candidates=3))
    provenance = Provenance("world", "world-1", {"annotate": how, "round": 2})
    write_filtered("inserted/one.parquet", here, provenance)
    rows = [{"id": name, "cosine": place / 4} for place, name in enumerate("abc")]
    Path("near/shard").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), "near/shard/prefiltered.parquet")
    readme = data_set(Path("inserted"), Path("out"), name="n", licenses={}, prefilter=Path("near"))
    table = pq.read_table("out/all/one.parquet")
    names = ["document_id", "prefilter_cosine", "places", "candidates", "round"]
    assert table.select(names).to_pylist()[0] == dict(zip(names, ("a", 0.0, "sentence", 3, 2), strict=True))
    assert table["prefilter_cosine"].to_pylist() == [0.0, 0.0, 0.25, 0.5]
    assert "| prefilter_cosine |" in readme.read_text()
    pq.write_table(pa.Table.from_pylist(rows[1:]), "near/shard/prefiltered.parquet")
    with pytest.raises(ValueError, match=r"one\.parquet: the prefilter has no document 'a'"):
        data_set(Path("inserted"), Path("again"), name="n", licenses={}, prefilter=Path("near"))
    assert not Path("again").exists()


def rows_of(card: str, heading: str) -> list[list[str]]:
    table = card.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [re.split(r" \| ", line.strip("| ")) for line in lines[1:]]


def test_the_card_counts_sources_and_reasons(here):
    card = written(licenses={"gsm8k": "MIT"}, without_text=["pile"])
    assert rows_of(card, "Sources") == [
        ["gsm8k", "1", "2", "1", "0.5", "MIT", "yes"],
        ["pile", "2", "2", "1", "-2", "not said", "no"],
    ]
    reasons = {("gain", "2", "yes"), ("below_tau", "1", "no"), ("too_long", "1", "no")}
    assert set(map(tuple, rows_of(card, "Kept and dropped"))) == reasons
    assert "has 2 kept rationales" in " ".join(card.split()) and "all 4 of 3 documents" in " ".join(
        card.split()
    )
    assert "Rows of pile have no `preceding`" in card


def test_the_card_says_which_rows_the_llama_3_licence_binds(here):
    card = written(licenses={"world": "Apache-2.0"})
    assert rows_of(card, "Models and prompts") == [
        ["wrote", "Meta-Llama-3-8B-Instruct", "llama3-3", "not said"],
        ["judged", "models/Llama-3.1-8B", "llama3-3", "not said"],
        ["wrote", "world", "world-1", "Apache-2.0"],
    ]
    bound = re.findall(r"\*\*(\S+) is under the Meta Llama 3 .*?This binds (.*?)\.\n", card, re.S)
    assert bound == [("Meta-Llama-3-8B-Instruct", "the rationales of the 2 rows that it wrote")]


def test_the_licence_of_a_base_model_binds_what_models_trained_from_it_wrote_and_judged(here):
    from_llama = {"base": "Meta-Llama-3-8B-Instruct", "filter_base": "my-base", "filter_model": "judge/hf"}
    write_filtered("in/two.parquet", here[2:], Provenance("runs/tuned/hf", "llama3-3", from_llama))
    card = written(licenses={"my-base": "llama3"})
    bound = re.findall(r"\*\*([^*]+) is under the Meta Llama 3 .*?This binds (.*?)\.\n", card, re.S)
    assert bound[1:] == [
        (
            "runs/tuned/hf (trained from Meta-Llama-3-8B-Instruct)",
            "the rationales of the 2 rows that it wrote",
        ),
        (
            "judge/hf (trained from my-base)",
            "log-likelihoods, gains, and so what is kept, of the 2 rows that it judged",
        ),
    ]
    columns = [pq.read_table(f"out/all/{name}.parquet")["base"].to_pylist() for name in ("one", "two")]
    assert columns == [[None, None], ["Meta-Llama-3-8B-Instruct"] * 2]


def test_a_licence_that_is_given_binds_whatever_the_name_says(here):
    card = written(licenses={"world": "llama3"})
    assert "This binds the rationales of the 2 rows that it wrote" in card.partition("**world is")[2]


def test_the_card_tells_of_duplicates_and_contamination_or_that_nothing_is_known(here):
    card = written(dedup=Path("unique"), decontaminate=Path("clean"))
    assert rows_of(card, "Duplicates") == [["gsm8k", "3", "2", "0", "1"], ["pile", "3", "0", "3", "0"]]
    assert rows_of(card, "Contamination") == [["gsm8k", "9", "1", "2", "3", "4"]]
    assert "Not looked for: math, math500," in card
    front = yaml.safe_load(card.split("---\n")[1])
    assert [config["config_name"] for config in front["configs"]] == ["kept", "all"]


def test_a_card_without_records_says_so(here):
    card = written()
    assert "Nothing is recorded of a search for duplicates" in card
    assert "Nothing is recorded of a search for questions" in card


def test_bad_input_writes_nothing(here):
    with pytest.raises(ValueError, match="has no source web: there are gsm8k, pile"):
        written(without_text=["web"])
    with pytest.raises(FileNotFoundError, match=r"in/dedup\.json: no such file"):
        written(dedup=Path("in"))
    with pytest.raises(FileNotFoundError, match="nowhere: no such file of rationales"):
        data_set(Path("nowhere"), Path("out"), name="x", licenses={})
    Path("in/three.parquet").write_text("text")
    with pytest.raises(ValueError, match=r"three\.parquet: not Parquet"):
        written()
    assert not list(Path().glob("out*"))
    Path("out").mkdir()
    with pytest.raises(ValueError, match="out: exists already; give a new folder"):
        written()


def test_the_command_writes_the_folder(here, capsys):
    from rationalyst_jax.cli.main import main

    arguments = ["card", "--rationales", "in", "--out", "out", "--name", "thoughts"]
    assert main([*arguments, "--licenses", json.dumps({"gsm8k": "MIT"}), "--without_text", '["pile"]']) == 0
    assert "out/README.md: written" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "out: exists already" in capsys.readouterr().err
