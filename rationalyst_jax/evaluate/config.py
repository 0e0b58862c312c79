"""What evaluation is told."""

from dataclasses import dataclass

from rationalyst_jax.files.ranges import AT_LEAST_1, SEED, require


@dataclass(frozen=True)
class ChooseConfig:
    """How choices are scored.

    Attributes:
        unconditional: Whether choices are also scored without their question, for the rule "unconditional".
        row_length: Tokens of a packed row. A question with one of its choices must fit in one row.
        rows_per_batch: Number of rows that are computed at the same time.
        block: Number of questions that are packed together, and written when they are scored.
        max_rationale_tokens: Largest number of tokens in a rationale, where a RATIONALYST writes them.
        seed: Seed of which other question's rationale stands in, for the control.

    Raises ValueError naming the key and the value that is out of range.
    """

    unconditional: bool = True
    row_length: int = 2048
    rows_per_batch: int = 4
    block: int = 256
    max_rationale_tokens: int = 64
    seed: int = 0

    def __post_init__(self):
        require("choose", self, AT_LEAST_1, "row_length", "rows_per_batch", "block", "max_rationale_tokens")
        require("choose", self, SEED, "seed")
