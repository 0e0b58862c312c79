"""A run at another's budget has as many candidates as fit, whatever the questions themselves cost."""

from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.pipeline.budget import affordable, share_of_budget
from rationalyst_jax.pipeline.reason import ReasonSummary
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.traces import Trace, Usage, mean_ledger


class Solver:
    """Questions that take so many operations for their context, and for each candidate."""

    def __init__(self, context: int, candidate: int):
        self.context = context
        self.candidate = candidate

    def __call__(self, config: ReasonConfig, path: Path, limit: int) -> ReasonSummary:
        flops = self.context + config.candidates * self.candidate
        traces = write_traces(path, flops, min(limit, 3))
        return ReasonSummary(len(traces), 0, 0.0, {}, mean_ledger(traces))


def write_traces(path: Path, flops: int, count: int) -> list[Trace]:
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens = {"agent": Usage(flops=flops)}
    traces = [Trace(str(i), "random", None, "end", (), (), tokens, 0.0) for i in range(count)]
    write_rows(path, [asdict(trace) for trace in traces])
    return traces


@given(
    st.integers(0, 2000), st.integers(1, 200), st.integers(1, 60), st.integers(1, 5), st.floats(-0.49, 0.49)
)
def test_a_shared_context_is_paid_for_once(tmp_path_factory, context, candidate, fits, tried, rest):
    path = tmp_path_factory.mktemp("budget")
    write_traces(path / "model.jsonl", context + round((fits + rest) * candidate), 3)
    solver = Solver(context, candidate)
    found = affordable(ReasonConfig(candidates=tried), solver, path / "own.jsonl", path / "model.jsonl")
    assert abs(found.candidates - fits) <= (0 if candidate > 60 else 1)  # budgets are whole operations


def test_the_share_of_a_budget_is_that_of_the_operations(tmp_path):
    write_traces(tmp_path / "model.jsonl", 400, 5)
    write_traces(tmp_path / "own.jsonl", 300, 5)
    assert share_of_budget(tmp_path / "own.jsonl", tmp_path / "model.jsonl") == 0.75


def test_a_run_that_counts_no_operations_has_no_budget(tmp_path):
    write_traces(tmp_path / "model.jsonl", 0, 3)
    with pytest.raises(ValueError, match=r"model\.jsonl: counts no operations"):
        affordable(ReasonConfig(), Solver(1, 1), tmp_path / "own.jsonl", tmp_path / "model.jsonl")
