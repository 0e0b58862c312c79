"""A lock on an output that dies with its process: two runs never write one output."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Busy(ValueError):
    """Another process is writing an output."""


@contextmanager
def locked(output: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes from writing `output`, a file or folder that need not be there yet.

    The lock is on a file beside it, `<output>.lock`, which is gone when the block ends. The system lets go of
    it when the process ends, however that happens. Raises Busy naming the output and the process that has it,
    or waits for that one. A file system without locks (some network mounts) has none: there the block just
    runs.
    """
    path = output.with_name(output.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _taken(path, output, wait)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _taken(path: Path, output: Path, wait: bool) -> int:
    """The descriptor of the lock's file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode(errors="replace")
            os.close(descriptor)
            who = f"process {owner}" if owner else "another process"  # one that has just taken it
            raise Busy(f"{output}: {who} is writing it: wait for it, or write elsewhere") from None
        except OSError:  # this file system knows no locks
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # whoever had it has removed the file meanwhile: its lock keeps nobody out
