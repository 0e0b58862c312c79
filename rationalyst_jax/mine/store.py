"""Triples as Parquet: one row per rationale, written whole or not at all, with what made them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rationalyst_jax.files.settings import package_versions
from rationalyst_jax.files.whole import whole
from rationalyst_jax.mine.likelihood_filter import FilteredTriple
from rationalyst_jax.mine.triples import Triple

TRIPLE_SCHEMA = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("preceding", pa.string(), nullable=False),
        pa.field("rationale", pa.string(), nullable=False),
        pa.field("following", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("prompt_version", pa.string(), nullable=False),
    ]
)
FILTERED_SCHEMA = pa.schema(
    [
        *TRIPLE_SCHEMA,
        pa.field("logprob_without", pa.float64()),
        pa.field("logprob_with", pa.float64()),
        pa.field("gain", pa.float64()),
        pa.field("tau", pa.float64(), nullable=False),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Provenance:
    """What made a file: the annotating model, the prompts' version, and the configs as JSON-able values."""

    model: str
    prompt_version: str
    config: Mapping[str, object]

    def metadata(self) -> dict[str, str]:
        """As Parquet schema metadata, with the versions of the packages that matter."""
        return {
            "model": self.model,
            "prompt_version": self.prompt_version,
            "packages": json.dumps(package_versions()),
            "config": json.dumps(self.config, sort_keys=True),
        }


def write_triples(path: str | Path, triples: Sequence[Triple], provenance: Provenance) -> None:
    """Writes triples before filtering."""
    _write(path, triples, TRIPLE_SCHEMA, provenance)


def write_filtered(path: str | Path, triples: Sequence[FilteredTriple], provenance: Provenance) -> None:
    """Writes triples after filtering, the dropped ones too."""
    _write(path, triples, FILTERED_SCHEMA, provenance)


def merge_filtered(files: Sequence[Path], path: Path, provenance: Provenance) -> None:
    """Writes the rows of files that `write_filtered` wrote into one, in their order, a file at a time."""
    schema = FILTERED_SCHEMA.with_metadata(provenance.metadata())
    with whole(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for file in files:
            writer.write_table(_table(file).replace_schema_metadata(schema.metadata))


def read_sources(path: str | Path) -> list[str]:
    """The sources of a file that `write_triples` or `write_filtered` wrote."""
    return _table(path, ["source"])["source"].unique().to_pylist()


def read_triples(path: str | Path) -> list[Triple]:
    """Reads what `write_triples` or `write_filtered` wrote.

    Raises ValueError naming the file and the columns that are missing, or one that is not as the schema says,
    and for two rows that are the same rationale.
    """
    return [Triple(**row) for row in _read(path, Triple)]


def read_filtered(path: str | Path) -> list[FilteredTriple]:
    """Reads what `write_filtered` wrote; raises as `read_triples`."""
    return [FilteredTriple(**row) for row in _read(path, FilteredTriple)]


def read_provenance(path: str | Path) -> Provenance:
    """The provenance a file was written with (without the versions); ValueError names a file without one."""
    metadata = _table(path, []).schema.metadata or {}
    try:
        return Provenance(
            model=metadata[b"model"].decode(),
            prompt_version=metadata[b"prompt_version"].decode(),
            config=json.loads(metadata[b"config"]),
        )
    except KeyError as error:
        raise ValueError(f"{path}: no provenance: schema metadata lacks {error.args[0].decode()!r}") from None


def _write(path: str | Path, triples: Sequence[Triple], schema: pa.Schema, provenance: Provenance) -> None:
    made_by = {"model": provenance.model, "prompt_version": provenance.prompt_version}
    rows = [asdict(triple) | made_by for triple in triples]
    with whole(Path(path)) as unfinished:
        pq.write_table(pa.Table.from_pylist(rows, schema.with_metadata(provenance.metadata())), unfinished)


def _read(path: str | Path, row_type: type) -> list[dict]:
    table = _table(path)
    columns = [f.name for f in fields(row_type)]
    if missing := [name for name in columns if name not in table.column_names]:
        raise ValueError(f"{path}: no column {', '.join(missing)}")
    checked = {name: _column(path, table, FILTERED_SCHEMA.field(name)) for name in columns}
    rows = pa.table(checked).to_pylist()
    first: dict[tuple[str, int], int] = {}
    for number, row in enumerate(rows, start=1):
        key = row["document_id"], row["index"]
        if first.setdefault(key, number) != number:
            raise ValueError(
                f"{path}: rows {first[key]} and {number} are both rationale {key[1]} of document {key[0]!r}"
            )
    return rows


def _column(path: str | Path, table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """A column in the type of the schema; another of its kind will do (large_string, int64, 0.0 for 0), and
    integers that identify documents."""
    column = table.column(field.name)
    if field.name == "document_id" and pa.types.is_integer(column.type):
        column = column.cast(field.type)
    if column.null_count and not field.nullable:
        row = column.is_null().index(True).as_py() + 1
        raise ValueError(f"{path}: column {field.name} has no value in row {row}")
    alike = (_is_number, pa.types.is_boolean, _is_text)
    if not any(kind(column.type) and kind(field.type) for kind in alike) and column.null_count < len(column):
        raise ValueError(f"{path}: column {field.name} holds {column.type}, not {field.type}")
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:  # a number that does not fit
        raise ValueError(f"{path}: column {field.name}: {error}") from None


def _is_number(type: pa.DataType) -> bool:
    return pa.types.is_integer(type) or pa.types.is_floating(type)


def _is_text(type: pa.DataType) -> bool:
    type = type.value_type if pa.types.is_dictionary(type) else type
    return pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type)


def _table(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of triples")
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not Parquet: {error}") from None
