"""A lock on an output that dies with its process: two runs never write one output."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps other processes from writing `output`, a file or folder that need not be there yet.

    The lock is on a file beside it, `<output>.lock`, which is gone when the block ends. The system lets go of
    it when the process ends, however that happens. Raises ValueError naming the output and the process that
    has it. A file system without locks (some network mounts) has none: there the block just runs.
    """
    path = output.with_name(output.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _taken(path, output)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _taken(path: Path, output: Path) -> int:
    """The descriptor of the lock's file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode(errors="replace")
            os.close(descriptor)
            who = f"process {owner}" if owner else "another process"  # one that has just taken it
            raise ValueError(f"{output}: {who} is writing it: wait for it, or write elsewhere") from None
        except OSError:  # this file system knows no locks
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # whoever had it has removed the file meanwhile: its lock keeps nobody out
