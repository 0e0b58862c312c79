"""The stage `card`: mined rationales become a data set that others can load, with a card that says what it
is."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.whole import read_json, whole_folder
from rationalyst_jax.mine.data_set import filtered_files, publish, read_cosines
from rationalyst_jax.report.card import data_set_card, models_of
from rationalyst_jax.tasks.benchmarks import TASKS

README = "README.md"


def data_set(
    rationales: Path,
    out: Path,
    *,
    name: str,
    licenses: Mapping[str, str],
    without_text: Collection[str] = (),
    prefilter: Path | None = None,
    dedup: Path | None = None,
    decontaminate: Path | None = None,
) -> Path:
    """Writes a folder that `datasets.load_dataset` opens, with the configs `kept` and `all`; gives its
    README.

    rationales: what `filter` wrote, a file or a folder of files. licenses: of sources and models, by their
    names. prefilter, dedup, decontaminate: the folders that these stages wrote. without_text: sources whose
    text is left out. The folder appears when all is written. Raises ValueError for one that exists, a source
    that is not there, and malformed files.
    """
    files = filtered_files(rationales)
    found = {}
    for stage, folder in (("dedup", dedup), ("decontaminate", decontaminate)):
        found[stage] = None if folder is None else _recorded(folder / f"{stage}.json", stage)
    cosines = None if prefilter is None else read_cosines(prefilter)
    with locked(out):
        if out.exists():
            raise ValueError(f"{out}: exists already; give a new folder")
        with whole_folder(out) as unfinished:
            published = [publish(file, unfinished, without_text, cosines) for file in files]
            sources = {triple.source for of_file in published for triple in of_file.triples}
            named = sources | {name for of_file in published for name in models_of(of_file.provenance)}
            if unknown := sorted(set(licenses) - named):
                raise ValueError(
                    f"licenses: there is no source or model {', '.join(unknown)}: there are "
                    f"{', '.join(sorted(named))}"
                )
            if unknown := sorted(set(without_text) - sources):
                names = ", ".join(sorted(sources))
                raise ValueError(f"{rationales}: has no source {', '.join(unknown)}: there are {names}")
            card = data_set_card(
                name,
                published,
                licenses=licenses,
                without_text=without_text,
                tasks=TASKS,
                has_cosines=cosines is not None,
                **found,
            )
            (unfinished / README).write_text(card, encoding="utf-8")
    return out / README


def _recorded(path: Path, stage: str) -> dict[str, Any]:
    """What a stage recorded of the documents that went. Raises ValueError for a file without that."""
    found = read_json(path)
    wanted = {"outcomes"} | ({"settings", "tasks"} if stage == "decontaminate" else set())
    if missing := [key for key in sorted(wanted) if not isinstance(found.get(key), dict)]:
        raise ValueError(f"{path}: not what {stage} wrote: no {', '.join(missing)}")
    return found
