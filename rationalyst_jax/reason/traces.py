"""Traces: what happened on each question, one JSON line each, in files that survive being killed.

Beside `traces.jsonl` stands `traces.config.json`: what the run was asked, so that a run with other settings
never continues it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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

    finish: "answer", "end" (the agent had no more to say) or "max_steps". samples: all whole solutions, of
    which `steps` is the winner, where a strategy makes several. tokens: usage per role.
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
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                traces.append(_from_json(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, row {number}: not a trace ({error!r})") from None
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
    lines = [json.dumps(asdict(trace), ensure_ascii=False, allow_nan=False) + "\n" for trace in traces]
    with open(path, "ab") as file:
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def resume_traces(path: Path, settings: Mapping[str, Any], block: int, total: int) -> list[Trace]:
    """What a run over `total` questions finds done: the traces of all finished blocks.

    Anything after them (part of a block, half a line) is cut off the file, so that the run to come writes
    the same bytes as one never interrupted. A new file gets `settings` (JSON values) beside it; an old one
    must have been made with equal settings. Raises ValueError naming the key that differs.
    """
    beside = path.with_suffix(".config.json")
    if not path.exists() or path.stat().st_size == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = beside.with_name(beside.name + ".part")
        draft.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.replace(beside)
        return []
    if not beside.exists():
        raise ValueError(f"{path}: no {beside.name} beside it says how it was made; remove it to start anew")
    try:
        made = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{beside}: not JSON ({error})") from None
    asked = json.loads(json.dumps(settings))
    for key in asked | made:
        if asked.get(key) != made.get(key):
            raise ValueError(
                f"{path}: made with {key}={made.get(key)!r}, this run has {asked.get(key)!r}; "
                "remove it or write elsewhere"
            )
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line break is half a line
    kept = total if len(lines) >= total else len(lines) - len(lines) % block
    os.truncate(path, sum(len(line) + 1 for line in lines[:kept]))
    return read_traces(path)
