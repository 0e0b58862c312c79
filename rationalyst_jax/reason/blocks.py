"""Blocks: how much is at work at once, and how a killed run gets the same bytes."""

import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from rationalyst_jax.roles.drive import drive
from rationalyst_jax.roles.role import Model


def in_blocks(
    names: Sequence[str],
    begin: Callable[[int], Coroutine[Any, Any, Any]],
    models: Sequence[Model],
    block: int,
    done: set[str],
    keep: Callable[[int, Any, float], None],
    tell: Callable[[], None],
) -> dict[str, Exception]:
    """Works on all that is not `done`, `block` of them at once. Gives what ended some, by their names.

    `begin` gives the coroutine of a number; `keep` is told its number, its result and the seconds since its
    block began, and the name is then done. `tell` is called while the models are at work.

    A block that is not complete is worked on again from its beginning, for the last bits of a result depend
    on what is computed beside it. (Not where a model's results cannot be repeated anyway; then only what is
    missing is.)
    """
    repeatable = all(model.repeatable for model in models)
    failures: dict[str, Exception] = {}
    tell()
    for start in range(0, len(names), block):
        numbers = range(start, min(start + block, len(names)))
        missing = [number for number in numbers if names[number] not in done]
        if missing:
            _work(numbers if repeatable else missing, names, begin, models, done, keep, failures, tell)
    return failures


def refuse_failures(failures: dict[str, Exception], stage: str, what: str, asked: int, path: Path) -> None:
    """Raises ValueError where there are failures, with the first of them."""
    if failures:
        name, error = next(iter(failures.items()))
        raise ValueError(
            f"{stage}: {len(failures)} of {asked} {what}s failed, as {what} {name}: {error}; "
            f"the others are in {path}, and the same run again tries these again"
        )


def _work(
    numbers: Sequence[int],
    names: Sequence[str],
    begin: Callable[[int], Coroutine[Any, Any, Any]],
    models: Sequence[Model],
    done: set[str],
    keep: Callable[[int, Any, float], None],
    failures: dict[str, Exception],
    tell: Callable[[], None],
) -> None:
    """Works on one block."""
    for model in models:
        model.forget()
    began = time.monotonic()

    def finished(place: int, result: Any) -> None:
        name = names[numbers[place]]
        if name not in done:
            keep(numbers[place], result, time.monotonic() - began)
            done.add(name)

    def failed(place: int, error: Exception) -> None:
        failures[names[numbers[place]]] = error

    drive([begin(number) for number in numbers], models, finished, failed, tell)
