"""`rationalyst demo`: the whole method, one stage after the other."""

from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from rationalyst_jax.pipeline.config import ExperimentConfig

DEFAULT_CONFIG = "demo"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="Also run what the config marks as full.")
    parser.add_class_arguments(ExperimentConfig, as_group=False)


def run(full: bool, **config: Any) -> None:
    """Run the whole method, stage after stage, or continue a run that was killed.

    Without --config this is the shipped experiment `demo`. It gives every option, the required ones too.
    """
    from rationalyst_jax.pipeline.experiment import run as run_experiment

    run_experiment(ExperimentConfig(**config), full=full, console=Console())
