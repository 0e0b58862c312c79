"""Stages that run once: each leaves a marker, and a later run passes over what is marked."""

import json
import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

_PACKAGES = ("rationalyst_jax", "jax", "flax", "optax", "transformers", "numpy")


def write_json(path: Path, value: Any) -> None:
    """Writes whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


class RunDir:
    """The folder of one experiment: `config.json`, `versions.json` and a marker in `stages/` per stage.

    Raises ValueError where the folder belongs to an experiment with another config, naming what differs.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], console: Console):
        self.path = path
        self.console = console
        config = json.loads(json.dumps(config))
        stored = path / "config.json"
        if stored.exists():
            made = json.loads(stored.read_text(encoding="utf-8"))
            if differences := list(_differences(made, config)):
                raise ValueError(f"{path}: made with another config: {'; '.join(differences)}")
        else:
            write_json(stored, config)
            write_json(path / "versions.json", {name: version(name) for name in _PACKAGES})

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` returned (a JSON value), now or when the stage was done before."""
        marker = self._marker(name)
        if not marker.exists():
            self.console.rule(f"[bold]{name}", align="left", style="dim")
            start = time.perf_counter()
            result = work()
            write_json(marker, {"seconds": round(time.perf_counter() - start, 2), "result": result})
        return json.loads(marker.read_text(encoding="utf-8"))["result"]

    def seconds(self, name: str) -> float:
        """How long a finished stage took; after a kill, what its last run took."""
        return json.loads(self._marker(name).read_text(encoding="utf-8"))["seconds"]

    def _marker(self, name: str) -> Path:
        return self.path / "stages" / f"{name.replace(' ', '_').replace('/', '_')}.json"


def _differences(made: Any, asked: Any, key: str = ""):
    if isinstance(made, dict) and isinstance(asked, dict):
        for name in made | asked:
            yield from _differences(made.get(name), asked.get(name), f"{key}.{name}" if key else name)
    elif made != asked:
        yield f"{key} {made!r} -> {asked!r}"
