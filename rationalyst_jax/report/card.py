"""Cards: what others must know of a data set, as the README of its folder."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from rationalyst_jax.lm.weights.open import model_name
from rationalyst_jax.mine.data_set import Published
from rationalyst_jax.mine.store import Provenance

UNKNOWN = "not said"  # a licence
# Llama 3 itself: later ones (3.1 and up) have another licence.
_LLAMA_3 = re.compile(r"llama[-_ ]?3(?!\.?\d)", re.IGNORECASE)


def data_set_card(
    name: str,
    published: Sequence[Published],
    *,
    licenses: Mapping[str, str],
    without_text: Collection[str] = (),
    dedup: Mapping[str, Any] | None = None,
    decontaminate: Mapping[str, Any] | None = None,
    tasks: Collection[str] = (),
    has_cosines: bool = False,
) -> str:
    """The card of a data set as Markdown, with the YAML block that `datasets` reads.

    licenses: of sources and models, by their names. dedup, decontaminate: what these stages recorded
    (`dedup.json`, `decontaminate.json`). tasks: the names of all tasks, to say which were not looked for.
    has_cosines: whether rows have those of the prefilter.
    """
    triples = [triple for of_file in published for triple in of_file.triples]
    settings = {} if decontaminate is None else decontaminate["settings"]["decontaminate"]
    found = {} if decontaminate is None else decontaminate["tasks"]
    return rendered(
        "data_set_card",
        name=name,
        rationales=len(triples),
        kept=sum(triple.kept for triple in triples),
        documents=len({triple.document_id for triple in triples}),
        sources=_sources(published, licenses, without_text),
        reasons=_reasons(published),
        models=_models(published, licenses),
        dedup=[] if dedup is None else _dedup(dedup["outcomes"]),
        contamination=[{"task": task} | counts for task, counts in found.items()],
        ngram=settings.get("ngram"),
        drop_masked=settings.get("drop_masked"),
        not_looked_for=[task for task in tasks if task not in found],
        hidden=sorted(without_text),
        has_cosines=has_cosines,
    )


def _sources(
    published: Sequence[Published], licenses: Mapping[str, str], without_text: Collection[str]
) -> list[dict[str, Any]]:
    triples = [triple for of_file in published for triple in of_file.triples]
    found = []
    for source in sorted({triple.source for triple in triples}):
        of_source = [triple for triple in triples if triple.source == source]
        taus = sorted({triple.tau for triple in of_source})
        found.append(
            {
                "name": source,
                "documents": len({triple.document_id for triple in of_source}),
                "rationales": len(of_source),
                "kept": sum(triple.kept for triple in of_source),
                "tau": ", ".join(f"{tau:g}" for tau in taus),
                "license": licenses.get(source, UNKNOWN),
                "text": "no" if source in without_text else "yes",
            }
        )
    return found


def _reasons(published: Sequence[Published]) -> list[dict[str, Any]]:
    counts = Counter((triple.reason, triple.kept) for of in published for triple in of.triples)
    return [
        {"reason": reason, "rationales": count, "kept": "yes" if kept else "no"}
        for (reason, kept), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def models_of(made_by: Provenance) -> list[str]:
    """The models that wrote and judged the rows of a file, and those that they were trained from."""
    others = (made_by.config.get(key) for key in ("base", "filter_model", "filter_base"))
    return [name for name in (made_by.model, *(str(name) for name in others if name is not None)) if name]


def _models(published: Sequence[Published], licenses: Mapping[str, str]) -> list[dict[str, Any]]:
    """The models that wrote and judged, each once, and the rows that the Llama 3 licence binds."""
    rows = Counter[tuple[str, str, Any, str]]()
    for of_file in published:
        made_by = of_file.provenance
        how = made_by.config
        writer = made_by.model or "a model that the file doesn't name"
        rows["wrote", writer, how.get("base"), made_by.prompt_version] += len(of_file.triples)
        judge = how.get("filter_model")
        if judge is not None:
            prompts = str(how.get("filter_prompts"))
            rows["judged", str(judge), how.get("filter_base"), prompts] += len(of_file.triples)
    found = []
    for (role, model, base, prompts), count in rows.items():
        names = [model] if base is None else [model, base]
        license = licenses.get(model, UNKNOWN)
        what = "the rationales" if role == "wrote" else "log-likelihoods, gains, and so what is kept,"
        found.append(
            {
                "role": role,
                "name": model if base is None else f"{model} (trained from {base})",
                "prompts": prompts,
                "license": license,
                "llama3": any(is_llama_3(one, licenses.get(one, UNKNOWN)) for one in names),
                "binds": f"{what} of the {count} rows that it {role}",
            }
        )
    return found


def _dedup(outcomes: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    return [
        {
            "name": source,
            "documents": sum(counts.values()),
            "kept": counts.get("kept", 0),
            "exact": counts.get("exact_duplicate", 0),
            "near": counts.get("near_duplicate", 0),
        }
        for source, counts in outcomes.items()
    ]


def is_llama_3(model: str, license: str) -> bool:
    """Whether a model is taken to be under the Meta Llama 3 Community License, by its name or its licence."""
    return bool(_LLAMA_3.search(model_name(model)) or license.lower() == "llama3")


def rendered(template: str, **values: Any) -> str:
    """One of the cards beside this file, with its values; a value that is missing is a bug."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["cell"] = _cell
    text = Path(__file__).with_name(f"{template}.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(**values)


def _cell(value: object) -> str:
    """A text in a table of Markdown."""
    return " ".join(str(value).split()).replace("|", "\\|")
