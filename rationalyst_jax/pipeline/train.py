"""The stage `train`: kept rationales become a RATIONALYST, exported as a Hugging Face checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax

from rationalyst_jax.files.prepared import Source
from rationalyst_jax.files.settings import begun, claimed, package_versions
from rationalyst_jax.files.whole import write_json
from rationalyst_jax.lm.devices.distributed import is_main
from rationalyst_jax.lm.devices.sharding import mesh_of
from rationalyst_jax.lm.weights.open import model_name
from rationalyst_jax.lm.weights.peft import save_adapters
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import PromptSet, check_prompts
from rationalyst_jax.report.plots import loss_curve
from rationalyst_jax.train.config import RECORD, TrainConfig
from rationalyst_jax.train.data import check_trees
from rationalyst_jax.train.examples import Example
from rationalyst_jax.train.export import export
from rationalyst_jax.train.loop import fit, knobs_named
from rationalyst_jax.train.metrics import Metrics
from rationalyst_jax.train.rationales import about_rationales, rationales_digest, read_rationales
from rationalyst_jax.train.store import open_store


@dataclass(frozen=True)
class TrainSummary:
    """A finished training.

    rationales: trained on; validation: held out; too_long: of both, dropped. tokens, tree_tokens: of the
    training examples apart and as trees. trained_tokens, flops: what all steps took, tokens in trees.
    metrics: the last step's row of metrics.jsonl.
    """

    rationales: int
    validation: int
    too_long: int
    tokens: int
    tree_tokens: int
    steps: int
    trained_tokens: int
    flops: int
    metrics: Mapping[str, float]


def train(
    rationales: Source,
    start: Place,
    models: Models,
    prompts: PromptSet,
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: Literal["auto", "never"] = "auto",
    profile: int = 0,
    wandb: str | None = None,
    progress: Callable[[int, Metrics], None] = lambda steps, row: None,
    note: Callable[[str], None] = print,
) -> TrainSummary:
    """Fine-tunes the checkpoint `start` to write the kept rationales, and exports it to `run_dir/hf`.

    Closes all engines first: the memory is for training. In `run_dir` a killed run continues; adapters are
    also left in PEFT's format in `run_dir/adapters`, and what cards tell of the run in `train.json`. Where
    processes are many, all must call this. Raises what `train/loop.py::fit` raises, and ValueError for
    checkpoints that `resume` "never" forbids to go on from.
    """
    if profile < 0:
        raise ValueError(f"train: profile must be at least 0 steps, got {profile}")
    models.close()
    checkpoint = models.checkpoint(start)
    check_prompts(checkpoint.tokenizer, prompts, ["rationale"])
    mesh = mesh_of(config.mesh, jax.devices())
    made_of = {
        "rationales": rationales_digest(rationales),
        "model": checkpoint.fingerprint,
        "prompts": prompts.version,
    }
    checkpoints = run_dir / "checkpoints"

    def examples() -> Iterator[Example]:
        return read_rationales(rationales, checkpoint.tokenizer, prompts)

    settings = {**made_of, "train": config.decides()}
    with claimed(run_dir / "train.config.json", settings, checkpoints, main=is_main()):
        if resume == "never" and begun(checkpoints):
            raise ValueError(
                f"{checkpoints}: holds checkpoints, and resume is never; remove it or write elsewhere"
            )
        checkpoint.check(mesh)
        store = open_store(run_dir / "data", made_of, examples, config.row_length, config.batch_examples)
        check_trees(store, checkpoint.config, config)
        about = about_rationales(rationales) if is_main() else {}
        with knobs_named(config):
            base = checkpoint.load(config.master_dtype if config.lora is None else config.dtype, mesh)
        result = fit(
            base,
            store,
            config,
            run_dir,
            mesh=mesh,
            starts_from=checkpoint.fingerprint,
            progress=progress,
            note=note,
            profile=profile,
            wandb=wandb,
        )
        trained = result.model
        stored = checkpoint.stored_dtype()
        if trained.adapters is not None:
            save_adapters(trained, run_dir / "adapters", base=str(start))
            if stored != config.dtype:  # the adapters were trained beside rounded weights
                trained = checkpoint.load(mesh=mesh)
                trained.adapters = result.model.adapters
        name = checkpoint.base or model_name(start)
        export(trained, checkpoint.path, run_dir / "hf", stored, name=name)
        if result.metrics and is_main():
            loss_curve(run_dir / "metrics.jsonl", run_dir / "loss.png")
        summary = TrainSummary(
            rationales=result.examples,
            validation=result.validation_examples,
            too_long=result.dropped,
            tokens=result.sequence_tokens,
            tree_tokens=result.tree_tokens,
            steps=result.steps,
            trained_tokens=result.trained_tokens,
            flops=result.flops,
            metrics=result.metrics,
        )
        if is_main():
            counts = {key: value for key, value in asdict(summary).items() if key != "metrics"}
            record = {
                "model": str(start),
                "prompt": prompts["rationale"].messages,
                **about,
                "counts": counts,
                "versions": package_versions(),
            }
            write_json(run_dir / RECORD, record)
    return summary
