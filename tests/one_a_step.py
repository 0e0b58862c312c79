"""A model without weights, for tests of what asks it and of what a kill leaves."""

from typing import Any

from rationalyst_jax.lm.engine.requests import Handle


class OneAStep:
    """Answers one request a step, the last one first, for `patience` steps; then it is interrupted.

    A subclass has `answer(handle)`, which gives the result of a request.
    """

    repeatable = True
    tokens = 0

    def __init__(self, patience: int = 1000, positions: int | None = 1000):
        self.patience = patience
        self.positions = positions
        self.requests: list[Any] = []
        self.waiting: list[Handle] = []

    def answer(self, handle: Handle) -> Any:
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def submit(self, request: Any) -> Handle:
        self.requests.append(request)
        self.waiting.append(Handle(request))
        return self.waiting[-1]

    def step(self) -> list[Handle]:
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience -= 1
        handle = self.waiting.pop()
        handle.result = self.answer(handle)
        handle.done = True
        return [handle]

    def cancel(self, handle: Handle) -> None: ...

    def forget(self) -> None: ...

    def flops(self, handle: Handle) -> int:
        return 1000
