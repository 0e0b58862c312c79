"""`rationalyst ablate`: what each part of the method is worth."""

from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from rationalyst_jax.pipeline.config import ExperimentConfig

DEFAULT_CONFIG = "ablations"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_class_arguments(ExperimentConfig, as_group=False)


def run(**config: Any) -> None:
    """Run an experiment with all its ablations, or continue one that was killed.

    Without --config this is the shipped experiment `ablations` on the embedded world. Any other experiment
    is run whole, with what its config marks as full.
    """
    from rationalyst_jax.pipeline.experiment import run as run_experiment

    run_experiment(ExperimentConfig(**config), full=True, console=Console())
