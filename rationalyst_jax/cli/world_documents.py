"""`rationalyst world documents`"""

from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.world.corpus import Thinker, documents, explanations


def run(
    out: Path,
    count: PositiveInt,  # pyright: ignore[reportInvalidTypeForm]
    seed: NonNegativeInt = 0,  # pyright: ignore[reportInvalidTypeForm]
    explanations_out: Path | None = None,
    thinker: Thinker = "right",
) -> None:
    """Write unlabeled documents of the embedded world.

    Args:
        out: JSONL file to write. Each row has id, text and source.
        count: Number of documents.
        seed: Seed of the documents: equal seeds give equal documents.
        explanations_out: JSONL file to write as well, for `rationalyst inspect --human`: the thought that
            leads to each line.
        thinker: Whose thoughts these are: "right" reads every relation well, "writer" as the document does.
    """
    with locked(out):
        write_rows(out, documents(seed, count))
    Console().print(f"{count} documents in {out}", markup=False)
    if explanations_out is not None:
        with locked(explanations_out):
            write_rows(explanations_out, explanations(seed, count, thinker))
        Console().print(f"their explanations in {explanations_out}", markup=False)
