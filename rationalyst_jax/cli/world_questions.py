"""`rationalyst world questions`"""

from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.world.corpus import questions


def run(
    out: Path,
    count: PositiveInt,  # pyright: ignore[reportInvalidTypeForm]
    split: str = "test",
    seed: NonNegativeInt = 0,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Write questions of the embedded world in GSM8K's format.

    Args:
        out: JSONL file to write. Each row has id, question and answer.
        count: Number of questions.
        split: Kind of questions: test, phrasing (wordings that the base model has never seen) or longer (6 or
            7 relations).
        seed: Seed of the questions: equal seeds give equal questions.
    """
    with locked(out):
        write_rows(out, questions(seed, count, split))
    Console().print(f"{count} questions in {out}", markup=False)
