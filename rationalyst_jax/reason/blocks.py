"""Blocks: how much is at work at once, and how a killed run gets the same bytes."""

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from rationalyst_jax.files.rows import Row, append_rows, kept_rows, write_rows
from rationalyst_jax.roles.drive import drive
from rationalyst_jax.roles.role import Model

Tell = Callable[[set[str]], None]  # told the names that are done


def in_blocks(
    names: Sequence[str],
    begin: Callable[[int], Coroutine[Any, Any, Any]],
    models: Sequence[Model],
    block: int,
    done: set[str],
    keep: Callable[[int, Any, float], None],
    tell: Callable[[], None],
) -> dict[str, Exception]:
    """Works on all that is not `done`, `block` of them at once. Gives what ended some, by their names and in
    the names' order, whoever an endpoint refused first.

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
    return {name: failures[name] for name in names if name in failures}


def rows_in_blocks(
    asked: Mapping[str, str],
    write: Callable[[str], Coroutine[Any, Any, Row]],
    models: Sequence[Model],
    block: int,
    path: Path,
    tell: Tell,
    *,
    stage: str,
    what: str,
) -> list[Row]:
    """The row that `write` gives for each name; all are in the JSONL `path`, in their order in the end.

    asked: by names the digest of what a row depends on. Called again with the same arguments it goes on where
    it was killed, and ends with the same bytes as a run never interrupted. Rows of names that are not asked
    now stay behind the others. Raises ValueError when all others are done, if some failed (each is a `what`):
    called again, it tries them again.
    """
    found: list[Row] = []

    def check(place: str, row: Row) -> str | None:
        found.append(row)
        name = str(row.get("id"))
        return name if name in asked and row.get("asked") == asked[name] else None

    kept = kept_rows(path, check)
    others = [row for row in found if row.get("id") not in asked]
    names = list(asked)
    done = set(kept)

    def keep(number: int, row: Row, _: float) -> None:
        name = names[number]
        kept[name] = {"id": name, "asked": asked[name], **row}
        append_rows(path, [kept[name]])
        found.append(kept[name])

    failures = in_blocks(
        names, lambda number: write(names[number]), models, block, done, keep, lambda: tell(done)
    )
    refuse_failures(failures, stage, what, len(names), path)
    ordered = [kept[name] for name in asked]
    if found != [*ordered, *others]:
        write_rows(path, [*ordered, *others])
    return ordered


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
