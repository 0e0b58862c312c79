"""The base checkpoint shipped in the package."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "base"


def checkpoint_path(name_or_path: str | Path) -> Path:
    """The folder of a checkpoint: "world" names the one shipped here, anything else is a path.

    Raises FileNotFoundError for a folder that does not exist.
    """
    path = SHIPPED if str(name_or_path) == "world" else Path(name_or_path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such checkpoint folder")
    return path
