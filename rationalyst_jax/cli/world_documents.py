"""`rationalyst world documents`"""

from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.world.corpus import documents


def run(
    out: Path,
    count: PositiveInt,  # pyright: ignore[reportInvalidTypeForm]
    seed: NonNegativeInt = 0,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Write unlabeled documents of the embedded world.

    Args:
        out: JSONL file to write. Each row has id, text and source.
        count: Number of documents.
        seed: Seed of the documents: equal seeds give equal documents.
    """
    with locked(out):
        write_rows(out, documents(seed, count))
    Console().print(f"{count} documents in {out}")
