"""Progress of long work, in a terminal and in a log (report/progress.py)."""

import io

import pytest
from rich.console import Console

from rationalyst_jax.report import progress as module
from rationalyst_jax.report.progress import track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, that a test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def lines(clock: list[float], told: list[tuple[float, int, int]]) -> list[str]:
    """What a log has of (seconds, done, tokens) that were told."""
    log = io.StringIO()
    with track(Console(file=log, width=100), "questions") as progress:
        for seconds, done, tokens in told:
            clock[0] = 100 + seconds
            progress(done, 8, tokens)
    return log.getvalue().splitlines()


def test_a_log_shows_tokens_and_speed_before_anything_is_done(clock: list[float]):
    assert lines(clock, [(0, 0, 0), (9, 0, 500), (10, 0, 1200), (11, 0, 1300)]) == [
        "questions: 0 of 8, 1,200 tokens, 120 tokens/s",
        "questions: 0",
    ]


def test_the_speed_is_the_latest(clock: list[float]):
    found = lines(clock, [(0, 0, 0), (10, 0, 10), (30, 2, 2010)])
    assert found[1] == "questions: 2 of 8, 2,010 tokens, 100 tokens/s"


def test_a_log_has_at_most_a_line_a_minute_when_work_is_long(clock: list[float]):
    found = lines(clock, [(second, 0, second) for second in range(3600)])
    assert len(found) - 1 == 3 + (3599 - 70) // 60


def test_what_a_model_computed_for_others_is_not_counted(clock: list[float]):
    assert lines(clock, [(0, 0, 1_000_000), (10, 1, 1_000_300)])[0].endswith("300 tokens, 30 tokens/s")


def test_work_without_a_model_has_no_speed(clock: list[float]):
    assert lines(clock, [(0, 0, 0), (10, 4, 0)]) == ["questions: 4 of 8", "questions: 4"]


def test_a_terminal_shows_tokens_too(clock: list[float]):
    screen = io.StringIO()
    console = Console(file=screen, width=120, force_terminal=True)
    with track(console, "questions") as progress:
        progress(0, 8, 0)
        clock[0] += 5
        progress(1, 8, 1000)
    assert "1,000 tokens, 200 tokens/s" in screen.getvalue()
