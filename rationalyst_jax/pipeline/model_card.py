"""The stage `card` for models: what a training left becomes the README beside its exported checkpoint."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.rows import read_rows
from rationalyst_jax.files.whole import file_name, read_json, whole
from rationalyst_jax.lm.weights.open import base_of, hub_id, model_name
from rationalyst_jax.pipeline.run_dir import read_summary
from rationalyst_jax.prompts.prompt import load_prompts, shipped_prompts
from rationalyst_jax.report.model_card import (
    Base,
    Result,
    Trained,
    license_of,
    model_card,
)
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.train.config import RECORD

README = "README.md"
_SIGNED = re.compile(r"\n<!-- written by rationalyst card: (\w+) -->\n\Z")


def model_cards(
    run: Path,
    *,
    name: str | None = None,
    licenses: Mapping[str, str],
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    benchmarks: Sequence[Path] = (),
) -> list[Path]:
    """Writes a card beside the exported checkpoint of a training, or beside that of each RATIONALYST of an
    experiment; gives the files.

    run: the run directory of a training, or of a finished experiment; a training within an experiment is told
    of its results too. name: title of the card, by default the run's; of several each adds its own. licenses:
    of the base model, sources, and models that wrote, by their names. base_model, datasets: names on the Hub.
    benchmarks: run directories of benchmarks, whose results with this checkpoint the card has.

    Writes nothing and raises ValueError for a run without an export, a licence of what is not there, a name
    that the base model's licence does not allow, a benchmark without this checkpoint, a README.md that is not
    as this function wrote it, and what is malformed; FileNotFoundError for what is missing.
    """
    trainings = _trainings(run)
    known: set[str] = set()
    cards: dict[Path, str] = {}
    for training, experiment in trainings.items():
        trained = _trained(training, base_model, benchmarks)
        if experiment is not None:
            trained = _with_results(trained, training, experiment)
        known |= _names(trained)
        own = training.resolve().name
        title = own if name is None else f"{name} {own}" if len(trainings) > 1 else name
        license = license_of(trained.base, licenses)
        if name is None and license.terms:
            title = f"{license.prefix} {title}".replace(" ", "-")
        cards[training / "hf" / README] = model_card(title, trained, licenses=licenses, datasets=datasets)
    if unknown := sorted(set(licenses) - known):
        raise ValueError(
            f"licenses: there is no source or model {', '.join(unknown)}: "
            f"there are {', '.join(sorted(known)) or 'none recorded'}"
        )
    for path in cards:
        _check_ours(path)
    for path, card in cards.items():
        with locked(path), whole(path) as unfinished:
            _check_ours(path)
            unfinished.write_text(_signed(card), encoding="utf-8")
    return list(cards)


# ---- Cards that are there ----


def _signed(card: str) -> str:
    """A card with a last line that tells whether somebody has changed it."""
    return f"{card}\n<!-- written by rationalyst card: {_digest(card)} -->\n"


def _check_ours(path: Path) -> None:
    """Raises ValueError for a file that `_signed` did not give."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    found = _SIGNED.search(text)
    if found is None or found[1] != _digest(text[: found.start()]):
        raise ValueError(f"{path}: is not as this command wrote it; move it away, or write the card by hand")


def _digest(card: str) -> str:
    return sha256(card.encode()).hexdigest()[:16]


# ---- What runs recorded ----


def _trainings(run: Path) -> dict[Path, Path | None]:
    """The trainings of a run that have an export, and the experiment that each belongs to."""
    experiment = run / "experiment.config.json"
    if experiment.is_file():
        trained = read_summary(run).get("training")
        if not trained:
            raise ValueError(f"{run}: trained no RATIONALYST, so there is no export")
        found: dict[Path, Path | None] = {run / "train" / file_name(name): run for name in trained}
    else:
        above = run.resolve().parent
        whole_run = above.parent if above.name == "train" else None
        if whole_run is not None and not (whole_run / "summary.json").is_file():
            whole_run = None
        found = {run: whole_run}
    for training in found:
        if not (training / "hf" / "config.json").is_file():
            raise ValueError(
                f"{training / 'hf'}: no exported checkpoint; give the run directory of a finished "
                "`rationalyst train`, `demo` or `ablate`"
            )
    return found


def _trained(run: Path, base_model: str | None, benchmarks: Sequence[Path]) -> Trained:
    asked = read_json(run / "train.config.json")
    record = read_json(run / RECORD) if (run / RECORD).is_file() else {}
    place = record.get("model")
    if base_model is None and place is not None:
        base_model = hub_id(place)
    metrics = run / "metrics.jsonl"
    return Trained(
        base=Base(asked["model"], place, base_model, base_of(run / "hf")),
        prompts=(_shipped(asked["prompts"]), asked["prompts"]),
        settings=asked["train"],
        losses=[row for _, row in read_rows(metrics)] if metrics.is_file() else [],
        record=record,
        results=[result for benchmark in benchmarks for result in _of_benchmark(benchmark, run / "hf")],
    )


def _shipped(version: str) -> str:
    """The name of the shipped prompt set of that version, or of a file where there is none."""
    return next((name for name in shipped_prompts() if load_prompts(name).version == version), "PROMPTS.yaml")


def _names(trained: Trained) -> set[str]:
    """What a licence may be given for."""
    record = trained.record
    places = [model["model"] for role in ("wrote", "judged") for model in record.get(role, ())]
    sources = [source["name"] for source in record.get("sources", ())]
    return {*trained.base.names, *places, *map(model_name, places), *sources}


def _with_results(trained: Trained, training: Path, experiment: Path) -> Trained:
    """What an experiment found out with a RATIONALYST, beside the runs without any, and how it was mined."""
    config = read_json(experiment / "experiment.config.json")
    summary = read_summary(experiment)
    own = next(name for name in summary["training"] if file_name(name) == training.resolve().name)
    if config["world"]:  # its questions have the form of a task, but are not the task's
        task, title = "rationalyst-world", "Embedded world of rationalyst_jax"
    else:
        task, title = config["task"], task_named(config["task"]).title
    runs = {**config["strategies"], **config["ablations"]}
    results = []
    for name, found in {**summary["strategies"], **summary["ablations"]}.items():
        if runs[name]["rationalyst"] in (own, None):
            versus = {key.removeprefix("vs_"): value for key, value in found.items() if key[:3] == "vs_"}
            uses = runs[name]["rationalyst"] == own
            results.append(_result(task, title, runs[name]["questions"], name, uses, found, versus))
    rounds = summary["mining"][: config["rationalysts"][own].get("rounds")]
    return replace(trained, rounds=rounds, results=[*results, *trained.results])


def _of_benchmark(run: Path, export: Path) -> Iterator[Result]:
    """What a benchmark found out with a checkpoint, by its fingerprint, beside what it did without it."""
    from rationalyst_jax.lm.weights.hf import fingerprint  # takes seconds to import

    config = read_json(run / "experiment.config.json")
    summary = read_summary(run)
    if "tasks" not in summary:
        raise ValueError(f"{run}: is the run directory of no benchmark")
    own = fingerprint(export)
    roles = {
        name: {role for role, place in models.items() if place is not None and config["models"][place] == own}
        for name, models in config["checkpoints"].items()
    }
    if not any(roles.values()):
        raise ValueError(f"{run}: no checkpoint of this benchmark is {export}")
    for task, of_task in summary["tasks"].items():
        for row, cell in of_task["cells"].items():
            if has := roles[cell["checkpoint"]]:
                uses = bool(has - {"rationalyst"}) or cell["ledger"]["generated by rationalyst"] > 0
                first = "all questions" if summary["limit"] is None else f"the first {summary['limit']}"
                found = {**cell["strict"], "ledger": cell["ledger"]}
                yield _result(task, of_task["title"], first, row, uses, found, cell["versus"])


def _result(
    task: str,
    title: str,
    questions: str,
    run: str,
    uses: bool,
    found: Mapping[str, Any],
    versus: Mapping[str, Mapping[str, float] | None],
) -> Result:
    numbers = {key: found[key] for key in ("accuracy", "low", "high", "n", "ledger")}
    return Result(task, title, questions, run, uses, versus=versus, **numbers)
