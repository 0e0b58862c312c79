"""The stage `inspect`: how do rationales differ from human ones, from others, and from saying nothing?"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rationalyst_jax.evaluate.inspection import Alternative, Inspected, Inspection, summarize_inspected
from rationalyst_jax.evaluate.rationale_faults import measure_faults
from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.files.settings import claimed
from rationalyst_jax.files.whole import check_file, whole
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.weights.tokenizer import marker_ids
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.mine.explanations import explanation_at, read_explanations
from rationalyst_jax.mine.likelihood_filter import FilteredTriple, decide, score_triples
from rationalyst_jax.mine.places import find_places
from rationalyst_jax.mine.triple_files import read_triple_files
from rationalyst_jax.mine.triples import Triple
from rationalyst_jax.pipeline.filter import mesh_for, unused_taus
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import PromptSet, check_prompts
from rationalyst_jax.report.plots import gain_histogram

# Words that any text may go on after, and that the embedded world's vocabulary has.
EMPTY_PHRASE = "let us go on"
Texts = Mapping[Alternative, str]


@dataclass(frozen=True)
class Scorer:
    """The model that gains are computed with, and its prompts."""

    place: Place
    models: Models
    prompts: PromptSet


def inspect_rationales(
    rationales: Path,
    out: Path,
    config: FilterConfig,
    scorer: Scorer | None = None,
    *,
    human: Path | None = None,
    mesh: MeshShape | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
    note: Callable[[str], None] = print,
) -> tuple[Inspection, list[Inspected]]:
    """Measures every rationale of a file by its words and, with a scorer, by its gain beside the gains of
    others at its place: a human explanation (`human`: a file of them), the rationale of another document of
    its source, drawn with config.seed, the sentence before the place once more, and `EMPTY_PHRASE`.

    Gains are those of `filter` with the same config: the alternatives of a place are triples like any other,
    so all of a document share its token tree. Writes a row per rationale to the JSONL file `out` and, with a
    scorer, a histogram of the gains beside it (.png). Until then gains are in `<out>.scores.jsonl`, where a
    killed run continues. Raises ValueError for a malformed file, explanations of other documents alone, work
    begun with other settings, and while another process is at this work.
    """
    check_file(out)
    if out.suffix == ".png":
        raise ValueError(f"{out}: that is the name of the histogram beside it: name it .jsonl")
    triples = read_triple_files(rationales)
    texts = alternatives(triples, _human_texts(triples, rationales, human), config.seed)
    if scorer is None:
        with locked(out):
            inspected = _inspected(triples, texts, [{} for _ in triples])
            write_rows(out, map(_row, inspected))
    else:
        if unused := unused_taus(triples, config, rationales):
            note(f"{rationales} has no source {', '.join(unused)}, which tau_by_source names")
        inspected = _score_and_write(triples, texts, out, config, scorer, mesh, progress)
    return summarize_inspected(inspected), inspected


def _score_and_write(
    triples: Sequence[Triple],
    texts: Sequence[Texts],
    out: Path,
    config: FilterConfig,
    scorer: Scorer,
    mesh: MeshShape | None,
    progress: Callable[[int, int, int], None],
) -> list[Inspected]:
    checkpoint = scorer.models.checkpoint(scorer.place)
    check_prompts(checkpoint.tokenizer, scorer.prompts, ["follow", "follow_guided"])
    marker_ids(checkpoint.tokenizer, config.suppress)
    devices = mesh_for(config, mesh)
    scores = out.with_name(f"{out.name}.scores.jsonl")
    record = out.with_name(f"{out.name}.scores.config.json")
    settings = {
        "model": checkpoint.fingerprint,
        "prompts": scorer.prompts.version,
        "filter": asdict(config),
    }
    with claimed(record, settings, scores):
        model = scorer.models.scorer(scorer.place, devices)
        at_places = [
            replace(t, rationale=text) for t, of in zip(triples, texts, strict=True) for text in of.values()
        ]
        scored, _ = score_triples(
            at_places, model, checkpoint.tokenizer, scorer.prompts, config, scores, progress, devices
        )
        every = replace(config, keep="gain", share=1.0, per_place="all")
        decided = iter(decide(scored, every))
        inspected = _inspected(triples, texts, [{name: next(decided) for name in of} for of in texts])
        _draw(inspected, out.with_suffix(".png"))
        write_rows(out, map(_row, inspected))
        scores.unlink()
        record.unlink()
    return inspected


def alternatives(
    triples: Sequence[Triple], human: Sequence[str | None], seed: int
) -> list[dict[Alternative, str]]:
    """What is put at the place of each triple: the human explanation where there is one, the rationale of
    another document where its source has another, and the sentence before where something stands there."""
    others = _of_other_documents(triples, seed)
    found: list[dict[Alternative, str]] = []
    for triple, explanation, other in zip(triples, human, others, strict=True):
        texts: dict[Alternative, str | None] = {
            "mined": triple.rationale,
            "human": explanation,
            "shuffled": other,
            "repeated": _sentence_before(triple) or None,
            "empty": EMPTY_PHRASE,
        }
        found.append({name: text for name, text in texts.items() if text is not None})
    return found


def _sentence_before(triple: Triple) -> str:
    start = [0, *find_places(triple.preceding, "sentence")][-1]
    return triple.preceding[start:].strip()


def _of_other_documents(triples: Sequence[Triple], seed: int) -> list[str | None]:
    """For each triple the rationale of another document of its source, all of which are equally likely."""
    rng = np.random.default_rng(seed)
    drawn: list[str | None] = [None] * len(triples)
    for source in dict.fromkeys(triple.source for triple in triples):
        of_source = [i for i, triple in enumerate(triples) if triple.source == source]
        of_source.sort(key=lambda i: triples[i].document_id)  # those of a document stand side by side
        names = [triples[i].document_id for i in of_source]
        own = Counter(names)
        first = dict(zip(reversed(names), reversed(range(len(names))), strict=True))
        for i, name in zip(of_source, names, strict=True):
            if others := len(names) - own[name]:
                place = int(rng.integers(others))
                place += own[name] if place >= first[name] else 0
                drawn[i] = triples[of_source[place]].rationale
    return drawn


def _human_texts(triples: Sequence[Triple], rationales: Path, human: Path | None) -> list[str | None]:
    if human is None:
        return [None] * len(triples)
    explanations = read_explanations(human)
    found = [explanation_at(explanations, triple) for triple in triples]
    if not any(found):
        name, _ = next(iter(explanations))
        raise ValueError(
            f"{human}: explains document {name!r} and others, but no place of {rationales}, whose documents "
            f"are {triples[0].document_id!r} and others"
        )
    return found


def _inspected(
    triples: Sequence[Triple], texts: Sequence[Texts], scored: Sequence[Mapping[Alternative, FilteredTriple]]
) -> list[Inspected]:
    judged: tuple[Alternative, ...] = ("mined", "human")
    return [
        Inspected(
            document_id=triple.document_id,
            source=triple.source,
            index=triple.index,
            following=triple.following,
            texts=of,
            gains={name: by.gain for name, by in found.items() if by.gain is not None},
            kept=frozenset(name for name, by in found.items() if by.kept),
            faults={
                name: measure_faults(triple.preceding, of[name], triple.following)
                for name in judged
                if name in of
            },
        )
        for triple, of, found in zip(triples, texts, scored, strict=True)
    ]


def _row(place: Inspected) -> dict[str, Any]:
    return {
        "document_id": place.document_id,
        "source": place.source,
        "index": place.index,
        "following": place.following,
        "texts": place.texts,
        "gains": place.gains,
        "kept": [name for name in place.texts if name in place.kept],
        "faults": {name: place.fault_names(name) for name in place.faults},
        "measured": {name: asdict(faults) for name, faults in place.faults.items()},
    }


def _draw(inspected: Sequence[Inspected], png: Path) -> None:
    gains: dict[str, list[float]] = {}
    for place in inspected:
        for name, gain in place.gains.items():
            gains.setdefault(name, []).append(gain)
    if gains:
        with whole(png) as unfinished:
            gain_histogram(gains, unfinished)
