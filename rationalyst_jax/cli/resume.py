"""Folders that a killed command continues in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from rationalyst_jax.pipeline.stages import RunDir


def claim(folder: Path, settings: Mapping[str, Any], started: bool, console: Console) -> None:
    """Records the settings of a command in its folder.

    Raises ValueError naming what differs where work has `started` there under other settings; a run that left
    no work (its input was bad) binds nobody.
    """
    if not started:
        (folder / "config.json").unlink(missing_ok=True)
    RunDir(folder, settings, console)
