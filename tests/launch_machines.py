"""Stand-ins for machines of a cloud, for the tests of launch/: commands that say what they were asked."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"

# Says how it was called, then ends with the next status in the file that STATUSES names; 0 without one.
RATIONALYST = """#!/usr/bin/env bash
echo "process $$: rationalyst $*"
echo "LIBTPU_INIT_ARGS=${LIBTPU_INIT_ARGS-unset}"
[ -s "${STATUSES-}" ] || exit 0
status=$(head -n1 "$STATUSES")
sed -i 1d "$STATUSES"
exit "$status"
"""


def script(path: Path, text: str) -> Path:
    """Writes a program, and the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def environment(folder: Path, extra: str = "", rationalyst: str = RATIONALYST) -> dict[str, str]:
    """Variables with which launch/worker.sh finds an environment that needs no installation."""
    venv = folder / "venv"
    script(venv / "bin" / "rationalyst", rationalyst)
    script(venv / "bin" / "python", f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    (venv / (f"installed-{extra}" if extra else "installed")).touch()
    given = {name: value for name, value in os.environ.items() if name != "LIBTPU_INIT_ARGS"}
    return given | {"VENV": str(venv), "EXTRA": extra}


def launch(name: str, *arguments: str | Path, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess:
    """Runs a script of launch/ to its end."""
    command = [LAUNCH / name, *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=1200)
