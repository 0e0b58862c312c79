"""The card of a trained model: the README beside its checkpoint, with the block of YAML that the Hugging Face
Hub reads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rationalyst_jax.lm.weights.open import model_name
from rationalyst_jax.report.card import UNKNOWN, is_llama_3, rendered
from rationalyst_jax.report.style import percent, points


@dataclass(frozen=True)
class License:
    """A licence by the name that the Hub knows it by (None: not said), and what it asks for, where known.

    display: a sentence to show. prefix: what names of derived models begin with.
    """

    id: str | None
    title: str = ""
    display: str = ""
    prefix: str = ""

    @property
    def terms(self) -> bool:
        return bool(self.display)


# Llama 3.1 and later ask for another sentence and another name.
_LLAMA = {
    "llama3": License("llama3", "Meta Llama 3 Community License", "Built with Meta Llama 3", "Llama 3"),
    **{
        f"llama3.{n}": License(f"llama3.{n}", f"Llama 3.{n} Community License", "Built with Llama", "Llama")
        for n in (1, 2, 3)
    },
}
_LLAMA_NAME = re.compile(r"llama[-_ ]?(3(?:\.[1-3])?)(?!\.?\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Base:
    """The model that training began with. place: where the run found it, None where that is not recorded.
    hub_id: its name on the Hub, where known. origin: the name of the model that it was itself trained from,
    or its own."""

    fingerprint: str
    place: str | None = None
    hub_id: str | None = None
    origin: str | None = None

    @property
    def names(self) -> list[str]:
        """All names that it may be called by, the best first."""
        places = [] if self.place is None else [model_name(self.place), self.place]
        found = [self.hub_id, *places, self.origin]
        return list(dict.fromkeys(name for name in found if name is not None))


@dataclass(frozen=True)
class Result:
    """One run on the questions of a task. uses: whether this model had a part in it. ledger: means of a
    question. versus: `difference`, `low` and `high` by the names of baselines, None where it is one."""

    task: str
    title: str
    questions: str
    run: str
    uses: bool
    accuracy: float
    low: float
    high: float
    n: int
    ledger: Mapping[str, float]
    versus: Mapping[str, Mapping[str, float] | None]


@dataclass(frozen=True)
class Trained:
    """What is known of a trained model. record: `train.json`, empty where the run left none. settings: of
    `train.config.json`. losses: rows of metrics.jsonl. rounds: of mining, as in `summary.json`. prompts: name
    of the prompt set, and its version."""

    base: Base
    prompts: tuple[str, str]
    settings: Mapping[str, Any]
    losses: Sequence[Mapping[str, float]]
    record: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]] = ()
    results: Sequence[Result] = ()


def license_of(base: Base, licenses: Mapping[str, str]) -> License:
    """What the base model is under: as `licenses` say by one of its names, else where its name says Llama 3.

    The model that is shipped, "world", is under the package's licence.
    """
    given = next((licenses[name] for name in base.names if name in licenses), None)
    if given is None:
        found = next((m for name in base.names if (m := _LLAMA_NAME.search(Path(name).name))), None)
        given = f"llama{found[1]}" if found else "apache-2.0" if base.place == "world" else None
    return _LLAMA.get((given or "").lower(), License(given))


def model_card(
    name: str, trained: Trained, *, licenses: Mapping[str, str], datasets: Sequence[str] = ()
) -> str:
    """The card as Markdown. Raises ValueError for a name that the base model's licence does not allow.

    licenses: of the base model, sources, and models that wrote and judged, by their names. datasets: names on
    the Hub of what the model was trained on.
    """
    license = license_of(trained.base, licenses)
    begins = re.sub(r"[-_ ]+", " ", name).lower()
    if license.terms and not begins.startswith(license.prefix.lower()):
        raise ValueError(
            f"name: the {license.title} asks for a name that begins with {license.prefix!r}, got {name!r}"
        )
    record = trained.record
    counts = record.get("counts")
    return rendered(
        "model_card",
        front=_front(name, trained, license, datasets),
        name=name,
        license=license,
        base={
            "name": next(iter(trained.base.names), None),
            "origin": trained.base.origin if trained.base.names[1:][-1:] == [trained.base.origin] else None,
            "fingerprint": trained.base.fingerprint,
        },
        rationales=None if counts is None else counts["rationales"],
        prompts={"name": trained.prompts[0], "version": trained.prompts[1]},
        prompt=record.get("prompt"),
        sources=_sources(record.get("sources", ()), licenses),
        models=_models(record, licenses, license),
        rounds=trained.rounds,
        training=_training(trained),
        counts=counts,
        settings=", ".join(f"{key} {value}" for key, value in _flat(trained.settings)),
        results=_tables(trained.results),
    )


def _front(name: str, trained: Trained, license: License, datasets: Sequence[str]) -> str:
    results = [
        {
            "task": {"type": "text-generation", "name": "Reasoning"},
            "dataset": {"type": result.task, "name": result.title, "args": {"questions": result.questions}},
            "metrics": [
                {
                    "type": "accuracy",
                    "value": result.accuracy,
                    "name": f"accuracy ({result.run})",
                    "args": {"run": result.run, "n": result.n, "low": result.low, "high": result.high},
                }
            ],
        }
        for result in trained.results
        if result.uses
    ]
    front = {
        "license": license.id,
        "base_model": trained.base.hub_id,
        "datasets": list(datasets),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rationalyst", "process-supervision"],
        "model-index": [{"name": name, "results": results}] if results else None,
    }
    return yaml.safe_dump(
        {key: value for key, value in front.items() if value},
        sort_keys=False,
        allow_unicode=True,
        width=10**6,
    )


def _sources(sources: Sequence[Mapping[str, Any]], licenses: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            **source,
            "tau": ", ".join(f"{tau:g}" for tau in source["tau"]),
            "reasons": ", ".join(f"{reason} ({n})" for reason, n in source["reasons"].items()),
            "license": licenses.get(source["name"], UNKNOWN),
        }
        for source in sources
    ]


def _models(record: Mapping[str, Any], licenses: Mapping[str, str], base: License) -> list[dict[str, Any]]:
    found = []
    for role in ("wrote", "judged"):
        for model in record.get(role, ()):
            called = model_name(model["model"])
            license = licenses.get(model["model"], licenses.get(called, UNKNOWN))
            bound = role == "wrote" and is_llama_3(called, license) and base.id != "llama3"
            found.append(
                {
                    "role": role,
                    "name": called,
                    "prompts": model["prompts"],
                    "license": license,
                    "binds": bound,
                }
            )
    return found


def _training(trained: Trained) -> list[tuple[str, str]]:
    """What was trained on, what it took and how the loss went."""
    counts = trained.record.get("counts")
    rows = []
    if counts is not None:
        rows = [
            ("rationales", f"{counts['rationales']:,}"),
            ("held out for validation", f"{counts['validation']:,}"),
            ("too long, dropped", f"{counts['too_long']:,}"),
            ("tokens of the rationales with their texts", f"{counts['tokens']:,}"),
            ("tokens, shared beginnings once", f"{counts['tree_tokens']:,}"),
            ("tokens of all steps", f"{counts['trained_tokens']:,}"),
            ("FLOPs of all steps", f"{counts['flops']:.3g}"),
        ]
    losses = trained.losses
    if losses:
        rows.append(("steps", f"{losses[-1]['step']:.0f}"))
        rows.append(("loss of the first and the last step (nats per token)", _both(losses, "loss")))
    if validated := [row for row in losses if "val_loss" in row]:
        rows.append(("validation loss, first and last (nats per token)", _both(validated, "val_loss")))
    versions = trained.record.get("versions", {})
    if versions:
        rows.append(("versions", ", ".join(f"{package} {number}" for package, number in versions.items())))
    return rows


def _both(rows: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{rows[0][key]:.3f}, {rows[-1][key]:.3f}"


def _flat(settings: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Settings by their dotted keys; those that nobody set are left out."""
    found = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{above}{key}.")
        elif value is not None:
            found.append((f"{above}{key}", value))
    return found


def _tables(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A table for each task and set of questions."""
    tables: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        tables.setdefault((result.title, result.questions), []).append(result)
    found = []
    for (title, questions), rows in tables.items():
        longest = sorted(rows, key=lambda row: -len(row.versus))  # a baseline is not compared with itself
        compared = {name for row in rows for name, versus in row.versus.items() if versus is not None}
        baselines = [n for n in dict.fromkeys(n for row in longest for n in row.versus) if n in compared]
        lines = []
        for row in rows:
            versus = [row.versus.get(baseline) for baseline in baselines]
            lines.append(
                {
                    **asdict(row),
                    "name": row.run,
                    "accuracy": percent(row.accuracy, row.low, row.high),
                    "differences": [
                        "–" if c is None else points(c["difference"], c["low"], c["high"]) for c in versus
                    ],
                    "written": f"{row.ledger['generated by rationalyst']:.0f}",
                    "gflop": f"{row.ledger['flops'] / 1e9:.3g}",
                }
            )
        found.append({"title": f"{title} ({questions})", "baselines": baselines, "rows": lines})
    return found
