"""Traces: what happened on each question, one JSON line each, in files that survive being killed.

Beside `traces.jsonl` stands `traces.jsonl.config.json`: what the run was asked, so that a run with other
settings never continues it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rationalyst_jax.files.rows import append_rows, read_rows, resume_rows
from rationalyst_jax.files.settings import claim


@dataclass(frozen=True)
class Step:
    """One step of a trajectory and how it was chosen.

    text: the step without its line break; finish: how the agent ended it ("stop", "end" of turn, "length").
    candidates: all texts proposed, `choice` the place of the one taken; scores: one each, in reduced nats,
    None where nothing was ranked (a strategy that doesn't, or candidates all equal).
    rationale: what RATIONALYST wrote, None where it was not asked; rationale_finish "length" marks one cut
    off. guided: the rationale really was in the scorer's or the agent's context (an empty one never is).
    """

    text: str
    finish: str
    candidates: tuple[str, ...]
    choice: int
    scores: tuple[float, ...] | None = None
    rationale: str | None = None
    rationale_finish: str | None = None
    guided: bool = False


@dataclass(frozen=True)
class Sample:
    """One whole solution among several: its steps' texts, its vote (None: it doesn't vote) and its end."""

    steps: tuple[str, ...]
    answer: str | None
    finish: str


@dataclass(frozen=True)
class Usage:
    """Tokens one role was asked for: sampled, sent as context (once per request, or per scored group of
    candidates), and scored."""

    generated: int = 0
    prefilled: int = 0
    scored: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.generated + other.generated, self.prefilled + other.prefilled, self.scored + other.scored
        )


@dataclass(frozen=True)
class Trace:
    """One question solved, or not: `answer` None is unanswered.

    finish: "answer", "end" (the agent had no more to say), "max_steps" or "length" (no position left).
    samples: all whole solutions, of which `steps` is the winner, where a strategy makes several.
    tokens: usage per role.
    """

    id: str
    strategy: str
    answer: str | None
    finish: str
    steps: tuple[Step, ...]
    samples: tuple[Sample, ...]
    tokens: dict[str, Usage]


def read_traces(path: Path) -> list[Trace]:
    """All traces of a file. Raises FileNotFoundError, or ValueError naming the file and the broken row."""
    traces = []
    for place, row in read_rows(path):
        try:
            traces.append(_from_json(row))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{place}: not a trace ({error!r})") from None
    return traces


def _from_json(row: dict[str, Any]) -> Trace:
    steps = (Step(**_tuples(step)) for step in row.pop("steps"))
    samples = (Sample(**_tuples(sample)) for sample in row.pop("samples"))
    tokens = {role: Usage(**usage) for role, usage in row.pop("tokens").items()}
    return Trace(**row, steps=tuple(steps), samples=tuple(samples), tokens=tokens)


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def append_traces(path: Path, traces: Sequence[Trace]) -> None:
    """Adds one finished block to the file and waits until it is on the disk."""
    append_rows(path, map(asdict, traces))


def resume_traces(path: Path, settings: Mapping[str, Any], block: int, total: int) -> int:
    """How many of a run's `total` questions the file has traces of: those of all finished blocks.

    Anything after them (part of a block, half a line) is cut off the file, so that the run to come writes
    the same bytes as one never interrupted. A new file gets `settings` (JSON values) beside it; an old one
    must have been made with equal settings. Raises ValueError naming the key that differs.
    """
    claim(path.with_name(path.name + ".config.json"), settings, path)
    return resume_rows(path, block, total)
