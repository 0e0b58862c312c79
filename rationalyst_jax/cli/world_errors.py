"""`rationalyst world errors`"""

from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.world.errors import step_errors


def run(
    out: Path,
    count: PositiveInt,  # pyright: ignore[reportInvalidTypeForm]
    seed: NonNegativeInt = 0,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Write solutions of the embedded world whose first wrong step is known, in ProcessBench's format.

    Each problem has a right solution and one that goes wrong once.

    Args:
        out: JSONL file to write. Each row has id, generator, problem, steps, final_answer_correct and label:
            the first wrong step, counted from 0, or -1.
        count: Number of solutions.
        seed: Seed of the solutions: equal seeds give equal solutions.
    """
    with locked(out):
        write_rows(out, step_errors(seed, count))
    Console().print(f"{count} solutions in {out}", markup=False)
