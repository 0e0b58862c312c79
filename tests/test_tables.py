"""Rows in every format, compressed or not, and in folders of shards."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rationalyst_jax.files.rows import (
    read_rows,
    read_table,
    row_name,
    table_files,
    table_name,
    write_rows,
)
from rationalyst_jax.mine.documents import read_documents
from rationalyst_jax.tasks.benchmarks import TASKS

ROWS = [{"text": f"Ünal has {i} €\n.", "n": str(i)} for i in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = "text,n\n" + "".join(f'"{row["text"]}",{row["n"]}\n' for row in ROWS)


def zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


COMPRESSED = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
TEXTS = {".jsonl": LINES, ".json": json.dumps(ROWS).encode(), ".csv": CSV.encode(), ".txt": LINES}


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("form", TEXTS)
def test_rows_are_read_whatever_they_are_written_in(tmp_path, form, codec):
    path = tmp_path / f"rows{form}{codec}"
    path.write_bytes(COMPRESSED[codec](TEXTS[form]))
    places, rows = zip(*read_table(path), strict=True)
    assert list(rows) == ROWS
    assert places[-1].startswith(f"{path}:") and row_name(path, f"{path}:7") == "rows-7"


def test_a_json_file_may_hold_json_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + LINES)
    assert [row for _, row in read_table(path)] == ROWS


@pytest.mark.parametrize("codec", [".gz", ".zst"])
def test_parts_compressed_one_after_the_other_are_one_file(tmp_path, codec):
    path = tmp_path / f"rows.jsonl{codec}"
    path.write_bytes(COMPRESSED[codec](LINES[:100]) + COMPRESSED[codec](LINES[100:]))
    assert [row for _, row in read_rows(path)] == ROWS


@pytest.mark.parametrize("codec", [".gz", ".zst"])
def test_a_damaged_file_is_named_and_no_row_is_lost_silently(tmp_path, codec):
    path = tmp_path / f"rows.jsonl{codec}"
    whole = COMPRESSED[codec](LINES)
    for damaged in (whole[:-9], b"plain text\n" * 9, whole[:20] + b"\0\0\0\0\0\0\0\0" + whole[28:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"rows\.jsonl\{codec}"):
            list(read_table(path))
    path.write_bytes(COMPRESSED[codec](b"\n"))
    with pytest.raises(ValueError, match="holds no rows"):
        list(read_table(path))
    with pytest.raises(FileNotFoundError):
        list(read_table(tmp_path / f"nowhere{codec}"))


def shards(folder: Path) -> Path:
    """Of 40 rows 10 in each of four shards; one shard is empty; two names are none of a shard."""
    (folder / "b").mkdir(parents=True)
    lines = LINES.splitlines(keepends=True)
    (folder / "00.jsonl").write_bytes(b"".join(lines[:10]))
    (folder / "01.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[10:20])))
    (folder / "02.jsonl.zst").write_bytes(zstd(b""))
    pq.write_table(pa.Table.from_pylist(ROWS[20:30]), folder / "03.parquet")
    (folder / "b" / "00.jsonl").write_bytes(b"".join(lines[30:]))
    (folder / "_SUCCESS").write_text("")
    (folder / ".00.jsonl.crc").write_bytes(b"\0")
    return folder


def test_a_folder_of_shards_is_one_table(tmp_path):
    folder = shards(tmp_path / "pile")
    places, rows = zip(*read_table(folder), strict=True)
    assert list(rows) == ROWS
    assert places[0] == f"{folder}/00.jsonl:1" and places[29] == f"{folder}/03.parquet:10"
    assert row_name(folder, places[39]) == "b/00-10"
    documents = read_documents(folder)
    assert len({document.id for document in documents}) == 40
    assert documents[10].id == "01-1" and {document.source for document in documents} == {"pile"}


def test_a_link_to_a_folder_of_shards_is_followed_and_one_that_leads_back_is_not(tmp_path):
    write_rows(tmp_path / "elsewhere" / "a.jsonl", [{"text": "a"}])
    (tmp_path / "shards").mkdir()
    write_rows(tmp_path / "shards" / "b.jsonl", [{"text": "b"}])
    (tmp_path / "shards" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "shards" / "back").symlink_to(tmp_path / "shards")
    assert [row["text"] for _, row in read_table(tmp_path / "shards")] == ["b", "a"]


def test_a_long_field_of_csv_is_a_document(tmp_path):
    (tmp_path / "a.csv").write_text(f"text\n{'a' * 200_000}\n")
    assert [len(row["text"]) for _, row in read_table(tmp_path / "a.csv")] == [200_000]


def test_a_folder_has_a_name_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "shards").mkdir()
    monkeypatch.chdir(tmp_path / "shards")
    assert table_name(Path(".")) == "shards"


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_parquet_that_is_damaged_anywhere_is_named(tmp_path, part):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i} {i * 7919 % 1000}" for i in range(5000)]}), path)
    data = bytearray(path.read_bytes())
    at = int(len(data) * part)
    data[at : at + 200] = bytes(byte ^ 0x5A for byte in data[at : at + 200])
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet: not Parquet, or damaged"):
        list(read_table(path))


def test_a_folder_holds_rows_alone(tmp_path):
    folder = shards(tmp_path / "pile")
    (folder / "00.jsonl.unfinished").write_bytes(LINES[:7])
    with pytest.raises(ValueError, match=r"00\.jsonl\.unfinished: a folder of rows holds files that end in"):
        list(read_table(folder))
    (folder / "00.jsonl.unfinished").unlink()
    (folder / "01.jsonl.gz").write_bytes(gzip.compress(b"\n{\n"))
    with pytest.raises(ValueError, match=r"01\.jsonl\.gz:2: not JSON"):
        list(read_table(folder))
    (tmp_path / "empty").mkdir()
    assert table_files(tmp_path / "empty") == []
    with pytest.raises(ValueError, match="empty: holds no rows"):
        list(read_table(tmp_path / "empty"))


def test_questions_without_ids_in_shards_get_ids_of_their_own(tmp_path):
    for name in ("a", "b"):
        row = {"question": f"How many are {name}?", "answer": "#### 1"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    assert [question.id for question in TASKS["gsm8k"].read(tmp_path)] == ["a-1", "b-1"]


def test_documents_of_the_pile_say_their_part(tmp_path):
    rows = [{"text": "a", "meta": {"pile_set_name": "ArXiv"}}, {"text": "b", "meta": {}}, {"text": "c"}]
    rows.append({"text": "d", "source": "own", "meta": {"pile_set_name": "ArXiv"}})
    path = tmp_path / "mixed.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [document.source for document in read_documents(path)] == ["ArXiv", "mixed", "mixed", "own"]
    assert read_documents(path)[1].id == "mixed-2"
