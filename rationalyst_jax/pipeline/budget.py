"""Comparisons at equal cost: how many candidates take the operations of another run?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rationalyst_jax.pipeline.reason import ReasonSummary
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.traces import Trace, mean_ledger, read_traces

PILOT = 50  # questions that tell what a candidate costs

Solve = Callable[[ReasonConfig, Path, int], ReasonSummary]


def affordable(config: ReasonConfig, solve: Solve, traces: Path, model: Path) -> ReasonConfig:
    """`config` with as many candidates as take, on a pilot's questions, the operations of another run.

    A question costs a + n·b operations with n candidates: its context is computed once for all of them. Two
    pilots, with the candidates of `config` and with twice as many, tell a and b.

    solve: solves so many of the first questions into a file. traces: where the whole run's will be; the
    pilots' are put into a folder beside it. model: traces of the other run. Raises ValueError where that one
    counts no operations.
    """
    n = config.candidates
    costs: list[float] = []
    ids: set[str] = set()
    for candidates in (n, 2 * n):
        path = traces.parent / "pilot" / f"{traces.stem}, {candidates} candidates.jsonl"
        costs.append(solve(replace(config, candidates=candidates), path, PILOT).ledger["flops"])
        ids = {trace.id for trace in read_traces(path)}
    budget = _flops([trace for trace in read_traces(model) if trace.id in ids])
    if min(budget, *costs) <= 0:
        raise ValueError(f"{model}: counts no operations, so no run can have its budget")
    once, twice = costs
    each = (twice - once) / n
    more = (budget - once) / each if each > 0 else n * (budget / once - 1)  # pilots too small to tell a and b
    return replace(config, candidates=max(1, n + round(more)))


def share_of_budget(traces: Path, model: Path) -> float:
    """The operations of a run over those of the one, on the same questions, with the traces `model`."""
    return _flops(read_traces(traces)) / _flops(read_traces(model))


def _flops(traces: Sequence[Trace]) -> float:
    return mean_ledger(traces)["flops"]
