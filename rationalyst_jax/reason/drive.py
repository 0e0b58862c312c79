"""Who drives the coroutines of all questions: asks the models what they wait for, and hands back results."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from rationalyst_jax.lm.engine.requests import Handle
from rationalyst_jax.reason.roles import Model, NotAnswered


def drive(
    coroutines: Sequence[Coroutine[Any, Any, Any]],
    models: Sequence[Model],
    finished: Callable[[int, Any], None],
    failed: Callable[[int, Exception], None],
) -> None:
    """Runs all coroutines to their ends, at once: requests of one are on their way while others think.

    `finished` and `failed` are told the number of a coroutine, as it ends, and what it gave: a result, or
    what ended this one alone: NotAnswered, or a request that a model refuses.
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
    finally:  # an interruption leaves nothing behind in models that live on
        for handle, (_, model) in whose.items():
            model.cancel(handle)
