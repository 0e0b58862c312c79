"""Mined rationales as training examples: what RATIONALYST is fine-tuned on."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.files.prepared import (
    PreparedSplit,
    Source,
    is_prepared,
    prepared_split,
    read_prepared,
    split_digest,
    wanted,
)
from rationalyst_jax.files.rows import Row, read_table, table_format
from rationalyst_jax.files.settings import file_digest
from rationalyst_jax.prompts.prompt import PromptSet, render
from rationalyst_jax.train.examples import Example

if TYPE_CHECKING:  # it takes a second to import
    from rationalyst_jax.files.preparing import DataSet

SET_NAME = "rationalyst_rationales"
_FILTERED = {"document_id", "source", "tau", "kept", "reason"}  # of what the filter wrote
_WANTED = {"document_id": str, "preceding": str, "rationale": str, "kept": bool}


def read_rationales(
    source: Source, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet
) -> Iterator[Example]:
    """One example per row of `kept_rationales`: preceding text -> rationale, closed.

    The prompt has weight 0 and the rationale with its closing weight 1. Raises as `kept_rationales`.
    """
    for row in kept_rationales(source):
        yield _example(row, tokenizer, prompts)


def kept_rationales(source: Source) -> Iterator[Row]:
    """The kept rationales of a source: `document_id`, `preceding` and `rationale` of each.

    `source` is a Parquet file, a folder of them, a JSONL file, or a set that `rationalyst data` prepared
    (`tfds:rationalyst_rationales[:SPLIT][@DIR]`, by default its split train); rows are read as they are asked
    for. Rows whose `kept` is false are skipped; what has not been filtered has no `kept` and is read whole.
    An integer `document_id` is taken as text. Raises FileNotFoundError for a missing file, and ValueError for
    a set that is not prepared, for a column that is missing, a value of another type (naming file and row, or
    file:line), and where no row is kept.
    """
    empty = True
    for row in _rows(source):
        if row.pop("kept", True):
            empty = False
            yield row
    if empty:
        raise ValueError(f"{source}: no kept rationale to train on")


def rationales_digest(source: Source) -> str:
    """A short fingerprint of the files, or the prepared set and its split, that `kept_rationales` reads;
    raises as it does, but for the rows."""
    if is_prepared(source):
        return split_digest(_prepared(source))
    if not Path(source).exists():
        raise FileNotFoundError(f"{source}: no such file of rationales")
    return file_digest(Path(source))


def about_rationales(source: Source) -> dict[str, Any]:
    """What Parquet files say of the kept rationales in them, as JSON values; nothing of other sources.

    `sources`: of each its name, documents, rationales, thresholds `tau` (nats), and why rationales were kept,
    with counts. `wrote`, `judged`: the models, each with its prompt set. What files don't say is left out.
    """
    if is_prepared(source):
        return {}
    documents = defaultdict[str, set[str]](set)
    taus = defaultdict[str, set[float]](set)
    reasons = defaultdict[str, Counter[str]](Counter)
    models: dict[str, dict[tuple[str, str], None]] = {"wrote": {}, "judged": {}}
    for path in _files(source):
        if table_format(path) == ".jsonl":
            continue
        with pq.ParquetFile(path) as file:
            said = {key.decode(): text.decode() for key, text in (file.schema_arrow.metadata or {}).items()}
            if said.get("model") and "prompt_version" in said:
                models["wrote"][said["model"], said["prompt_version"]] = None
            config = _json_object(said.get("config", ""))
            if {"filter_model", "filter_prompts"} <= config.keys():
                models["judged"][config["filter_model"], config["filter_prompts"]] = None
            if not _FILTERED <= {*file.schema_arrow.names}:
                continue
            for batch in file.iter_batches(1024, columns=sorted(_FILTERED)):
                for row in batch.to_pylist():
                    if row["kept"]:
                        name = str(row["source"])
                        documents[name].add(str(row["document_id"]))
                        taus[name] |= {row["tau"]} - {None}
                        reasons[name][str(row["reason"])] += 1
    sources = [
        {
            "name": name,
            "documents": len(documents[name]),
            "rationales": reasons[name].total(),
            "tau": sorted(taus[name]),
            "reasons": dict(reasons[name].most_common()),
        }
        for name in sorted(documents)
    ]
    found = {"sources": sources} | {
        role: [{"model": model, "prompts": prompts} for model, prompts in named]
        for role, named in models.items()
    }
    return {key: value for key, value in found.items() if value}


def data_set() -> "DataSet":
    """The data set in TFDS's form whose rows `kept_rationales` gives."""
    from rationalyst_jax.files.preparing import DataSet

    fields = {name: kind for name, kind in _WANTED.items() if name != "kept"}
    description = (
        "Mined rationales that were kept, with the text before each: what RATIONALYST is trained on."
    )
    return DataSet(SET_NAME, fields, description, homepage="", license="")


def _json_object(text: str) -> dict[str, Any]:
    """What a text holds; an empty one where that is anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _prepared(source: Source) -> PreparedSplit:
    asked = wanted(source)
    if asked.name != SET_NAME:
        raise ValueError(f"{source}: no rationales, which are in {SET_NAME}")
    return prepared_split(asked, "train")


def _rows(source: Source) -> Iterator[Row]:
    if is_prepared(source):
        yield from (row for _, row in read_prepared(_prepared(source)))
        return
    for file in _files(source):
        yield from _jsonl_rows(file) if table_format(file) == ".jsonl" else _parquet_rows(file)


def _files(path: Source) -> list[Path]:
    """The file itself, or the Parquet files of a folder by their names.

    Raises FileNotFoundError where there is nothing, ValueError for a folder that holds none.
    """
    path = Path(path)
    if path.is_dir():
        if not (shards := sorted(path.glob("*.parquet"))):
            raise ValueError(f"{path}: no Parquet file in this folder")
        return shards
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of rationales")
    return [path]


def _example(row: Row, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> Example:
    fields = {"preceding": row["preceding"]}
    context, target = render(tokenizer, prompts["rationale"], fields, target=row["rationale"], close=True)
    weights = (0.0,) * len(context) + (1.0,) * len(target)
    return Example((*context, *target), weights, row["document_id"])


def _parquet_rows(path: Path) -> Iterator[Row]:
    """The columns that count, each value of the right type."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in _WANTED if name not in (*names, "kept")]:
                raise ValueError(f"{path}: no column {', '.join(missing)}")
            for batch in file.iter_batches(1024, columns=[name for name in _WANTED if name in names]):
                for row in batch.to_pylist():
                    number += 1
                    yield _checked(row, f"{path}: row {number}: column ")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not Parquet: {error}") from None


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for place, row in read_table(path):
        if missing := [name for name in _WANTED if name not in (*row, "kept")]:
            hint = "" if "rationale" in missing else " (rationalyst filter makes these of other rows)"
            raise ValueError(f"{place}: no {', '.join(missing)}{hint}")
        yield _checked({name: row[name] for name in _WANTED if name in row}, f"{place}: ")


def _checked(row: Row, where: str) -> Row:
    if type(row["document_id"]) is int:
        row["document_id"] = str(row["document_id"])
    for name, value in row.items():
        if not isinstance(value, _WANTED[name]):
            words = "text" if _WANTED[name] is str else "true or false"
            raise ValueError(f"{where}{name} must be {words}, found {value!r:.60}")
    return row
