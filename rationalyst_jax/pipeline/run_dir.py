"""Stages that run once: each leaves a marker, and a later run passes over what is marked."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape

from rationalyst_jax.files.settings import begun, claimed, differences, package_versions
from rationalyst_jax.files.whole import file_name, read_json, write_json


class RunDir:
    """The folder of one experiment: its config, `versions.json` and a marker in `stages/` per stage.

    A context, in which no other process works in the folder. Where it was begun with other versions of
    packages, the console says so: the same seed then need not give the same figures. Raises ValueError where
    it belongs to an experiment with other settings, or to another process.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], console: Console):
        self.path = path
        self.console = console
        self._claim = partial(claimed, path / "experiment.config.json", settings, path / "stages")
        self._claimed = self._claim()

    def __enter__(self) -> Self:
        self._claimed.__enter__()
        path = self.path
        console = self.console
        versions = package_versions()
        if not begun(path / "stages"):
            write_json(path / "versions.json", versions)
        elif changed := list(differences(read_json(path / "versions.json"), versions)):
            told = f"{path} was begun with other versions: {'; '.join(changed)}"
            console.print(told, style="yellow", markup=False)
        return self

    def __exit__(self, *error: Any) -> None:
        self._claimed.__exit__(*error)

    def check(self) -> None:
        """Raises as entering does, but for another process that works in the folder."""
        with self._claim(main=False):
            pass

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` returned (a JSON value), now or when the stage was done before."""
        marker = self._marker(name)
        if not marker.exists():
            self.console.rule(f"[bold]{escape(name)}", align="left", style="dim")
            start = time.perf_counter()
            result = work()
            write_json(marker, {"seconds": round(time.perf_counter() - start, 2), "result": result})
        return self.result(name)

    def result(self, name: str) -> Any:
        """What the work of a finished stage returned."""
        return read_json(self._marker(name))["result"]

    def is_done(self, name: str) -> bool:
        return self._marker(name).exists()

    def seconds(self, name: str) -> float:
        """How long a finished stage took; after a kill, what its last run took."""
        return read_json(self._marker(name))["seconds"]

    def _marker(self, name: str) -> Path:
        return self.path / "stages" / f"{file_name(name)}.json"


def read_summary(run: Path) -> dict[str, Any]:
    """What a finished experiment or benchmark came to.

    Raises FileNotFoundError for a run that is not finished, ValueError naming a file that holds something
    else, as versions before 0.2 left it.
    """
    path = run / "summary.json"
    summary = read_json(path)
    if "tasks" not in summary and not isinstance(summary.get("mining"), list):
        raise ValueError(
            f"{path}: no summary of an experiment or benchmark as this version writes it: do the run again"
        )
    return summary
