"""Coroutines without an event loop, and who drives them.

Awaiting `ask` hands a coroutine's calls to `drive`, which asks the models and sends what is finished back.
"""

import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any

from rationalyst_jax.lm.engine.requests import Handle
from rationalyst_jax.roles.role import Model, NotAnswered

Call = tuple[Model, Any]


@types.coroutine
def ask(*calls: Call) -> Generator[tuple[Call, ...], list[Handle], list[Handle]]:
    """Awaits the results of calls, which are worked on at once. Raises the error of the first that has
    one."""
    return (yield calls)


@types.coroutine
def together(
    coroutines: Sequence[Coroutine[Any, Any, Any]],
) -> Generator[tuple[Call, ...], list[Handle], list[Any]]:
    """Awaits several coroutines: what they wait for is asked at once, round by round. Gives their results."""
    results: dict[int, Any] = {}
    waiting: dict[int, tuple[Call, ...]] = {}

    def resume(number: int, handles: list[Handle] | None) -> None:
        try:
            waiting[number] = coroutines[number].send(handles)
        except StopIteration as stop:
            results[number] = stop.value

    for number in range(len(coroutines)):
        resume(number, None)
    while waiting:
        asked = list(waiting.items())
        waiting.clear()
        handles = iter((yield tuple(call for _, calls in asked for call in calls)))
        for number, calls in asked:
            resume(number, [next(handles) for _ in calls])
    return [results[number] for number in range(len(coroutines))]


def drive(
    coroutines: Sequence[Coroutine[Any, Any, Any]],
    models: Sequence[Model],
    finished: Callable[[int, Any], None],
    failed: Callable[[int, Exception], None],
    working: Callable[[], None] = lambda: None,
) -> None:
    """Runs all coroutines to their ends, at once: requests of one are on their way while others think.

    `finished` and `failed` are told the number of a coroutine, as it ends, and what it gave: a result, or
    what ended this one alone: NotAnswered, or a request that a model refuses. `working` is called after every
    step of a model.
    """
    asked: dict[int, list[Handle]] = {}  # what a coroutine waits for
    whose: dict[Handle, tuple[int, Model]] = {}  # of those not done

    def resume(number: int, handles: list[Handle] | None) -> None:
        coroutine = coroutines[number]
        try:
            error = next((handle.error for handle in handles or () if handle.error is not None), None)
            calls = coroutine.send(handles) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            return finished(number, stop.value)
        except NotAnswered as error:
            return failed(number, error)
        try:
            asked[number] = []
            for model, request in calls:
                asked[number].append(model.submit(request))
                whose[asked[number][-1]] = number, model
        except ValueError as error:
            del asked[number]  # what it asked already is computed for nobody
            coroutine.close()
            failed(number, error)

    try:
        for number in range(len(coroutines)):
            resume(number, None)
        while whose:
            for model in models:
                for handle in model.step() if model.busy else ():
                    number, _ = whose.pop(handle, (-1, None))  # none: cancelled, in an earlier run
                    if number in asked and not any(other in whose for other in asked[number]):
                        resume(number, asked.pop(number))
                working()
    finally:  # an interruption leaves nothing behind in models that live on
        for handle, (_, model) in whose.items():
            model.cancel(handle)
