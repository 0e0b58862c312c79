"""Where a user's machine keeps what can be made again."""

import os
from pathlib import Path


def user_cache(name: str) -> Path | None:
    """The folder `rationalyst_jax/<name>` of the user's cache; None for a user without a home.

    The cache is XDG_CACHE_HOME, by default `~/.cache`. A path that is not absolute counts as none.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return cache / "rationalyst_jax" / name if cache.is_absolute() else None
