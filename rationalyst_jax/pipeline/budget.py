"""Comparisons at equal cost: how many candidates take the operations of another run?"""

from collections.abc import Callable
from pathlib import Path

from rationalyst_jax.pipeline.reason import ReasonSummary
from rationalyst_jax.reason.traces import mean_ledger, read_traces

PILOT = 50  # questions that tell what a candidate costs


def affordable(
    candidates: int, pilot: Callable[[Path, int], ReasonSummary], traces: Path, model: Path
) -> int:
    """How many candidates take, on a pilot's questions, the operations of the run with the traces `model`.

    pilot: solves so many of the first questions with `candidates` candidates, and writes traces to a path.
    traces: where the whole run's will be; the pilot's are put into a folder beside it.
    """
    path = traces.parent / "pilot" / traces.name
    took = pilot(path, PILOT)
    ids = {trace.id for trace in read_traces(path)}
    other = [trace for trace in read_traces(model) if trace.id in ids]
    return max(1, round(candidates * mean_ledger(other)["flops"] / took.ledger["flops"]))
