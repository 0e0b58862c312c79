"""Sources by the names of their tasks, as options name them."""

from argparse import ArgumentError
from collections.abc import Sequence


def sources_by_task(option: str, given: Sequence[str]) -> dict[str, str]:
    """The sources of an option that takes TASK=FILE several times. Raises ArgumentError for another form, and
    for a task that is there twice."""
    sources: dict[str, str] = {}
    for one in given:
        task, equals, source = one.partition("=")
        if not equals or not source:
            raise ArgumentError(None, f"{option} takes TASK=FILE, got {one!r}")
        if task in sources:
            raise ArgumentError(None, f"{option} names {task} twice; files of one set go in a folder")
        sources[task] = source
    return sources
