"""`rationalyst demo`: the whole method, one stage after the other."""

from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from rationalyst_jax.pipeline.config import ExperimentConfig

DEFAULT_CONFIG = "demo"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="Run the ablations marked full too.")
    parser.add_class_arguments(ExperimentConfig, as_group=False)


def run(full: bool, **config: Any) -> None:
    """Runs the experiment, or continues it in its run directory."""
    from rationalyst_jax.pipeline.experiment import run as run_experiment

    run_experiment(ExperimentConfig(**config), full=full, console=Console())
