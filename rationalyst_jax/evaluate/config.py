"""What evaluation is told."""

from dataclasses import dataclass

from rationalyst_jax.files.ranges import AT_LEAST_1, require


@dataclass(frozen=True)
class ChooseConfig:
    """How choices are scored.

    Attributes:
        unconditional: Whether choices are also scored without their question, for the rule "unconditional".
        row_length: Tokens of a packed row. A question with one of its choices must fit in one row.
        rows_per_batch: Number of rows that are computed at the same time.
        block: Number of questions that are packed together, and written when they are scored.

    Raises ValueError naming the key and the value that is out of range.
    """

    unconditional: bool = True
    row_length: int = 2048
    rows_per_batch: int = 4
    block: int = 256

    def __post_init__(self):
        require("choose", self, AT_LEAST_1, "row_length", "rows_per_batch", "block")
