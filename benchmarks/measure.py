"""What every benchmark shares: timing, what the machine can do, one table, and one line for machines."""

import json
import resource
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import monitoring
from jax.typing import DTypeLike
from rich.console import Console
from rich.table import Table

from rationalyst_jax.lm.attention.blocks import visible_blocks
from rationalyst_jax.lm.devices.precision import precision_of

Result = TypeVar("Result")
BLOCK = 128  # places of a block, where visited blocks are counted

# What JAX (0.10 to 0.12 at least) tells its listeners once for each program that XLA compiles, or that comes
# out of the persistent compilation cache where one is set up.
_COMPILED = "/jax/core/compile/backend_compile_duration"


def arguments(description: str | None) -> ArgumentParser:
    """The options every benchmark has."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="a last line for machines")
    return parser


def best_of(runs: int, work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of the fastest run after a warm-up, and what the last one returned; `work` runs to its end."""
    result = work()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def peak_memory() -> float:
    """The most memory this process has had so far, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def matmul_peak(dtype: DTypeLike, size: int) -> float:
    """FLOP/s of a product of two `size` x `size` matrices: what this machine reaches at its best."""
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)  # zeros and ones run faster than numbers
    product = jax.jit(partial(jnp.matmul, precision=precision_of(x)))
    seconds, _ = best_of(5, lambda: product(x, x).block_until_ready())
    return 2 * size**3 / seconds


def copy_peak(size: int) -> float:
    """Bytes/s, read and written ones, of a pass over `size` bytes: what this machine's memory reaches."""
    x = jnp.zeros(size // 4, jnp.int32)
    copy = jax.jit(lambda x: x + 1)
    seconds, _ = best_of(5, lambda: copy(x).block_until_ready())
    return 2 * x.nbytes / seconds


@contextmanager
def compilations() -> Iterator[list[float]]:
    """A list that gets the seconds of each XLA compilation in the block: its length is their number."""
    found: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            found.append(duration_secs)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        monitoring.unregister_event_duration_listener(listen)


def visited(size_BT: np.ndarray) -> float:
    """Blocks in which something is seen, out of those that a causal mask leaves."""
    B, T = size_BT.shape
    Q = T // BLOCK
    return int(visible_blocks(jnp.asarray(size_BT), BLOCK, BLOCK).sum()) / (B * Q * (Q + 1) / 2)


def print_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str] | None], caption: str | None = None
) -> None:
    """Prints a table as wide as it needs; None among the rows draws a line."""
    table = Table(title=title, caption=caption)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    Console(width=250).print(table)


def print_json(name: str, unit: str, ours: float, peer: float | None, **extras: Any) -> None:
    """One line for machines; `ours` and `peer` are rates (more is better), `ratio` is ours to the peer's."""
    ratio = None if peer is None else ours / peer
    print(json.dumps({"name": name, "unit": unit, "ours": ours, "peer": peer, "ratio": ratio, **extras}))
