"""The option `--shard` of the commands whose work several hosts divide."""

from argparse import ArgumentError

from rationalyst_jax.files.parts import HostShard
from rationalyst_jax.lm.devices.shards import shard_of


def shard_from(option: str) -> HostShard:
    """What the option asks for. Raises ArgumentError where it cannot be."""
    try:
        return shard_of(option)
    except ValueError as error:
        raise ArgumentError(None, f"--shard: {error}") from None
