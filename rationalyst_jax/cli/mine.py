"""`rationalyst mine`: documents, or copies annotated elsewhere, become triples."""

from argparse import ArgumentError
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table

if TYPE_CHECKING:
    from rationalyst_jax.mine.documents import Annotation
    from rationalyst_jax.prompts.prompt import PromptSet


def run(
    out: Path,
    prompts: str,
    annotate: AnnotateConfig,
    engine: EngineConfig,
    documents: Path | None = None,
    annotations: Path | None = None,
    model: str | None = None,
    min_similarity: float = 0.9,
) -> None:
    """Annotate documents with a model, or import annotated ones, and cut them into triples.

    Args:
        out: Folder for triples.parquet and, of own annotations, annotations.jsonl; a killed run continues.
        prompts: A shipped prompt set (llama3, world) or a YAML file.
        documents: JSONL of documents to annotate: text, and id and source where there are any.
        annotations: JSONL of annotated documents to import instead: input, output.
        engine: How the annotator generates.
        model: Checkpoint folder of the annotator ("world": the one shipped); for an import only its name.
        min_similarity: How similar a copy must be to its document (0 to 1) to be used.
    """
    from rationalyst_jax.mine.documents import read_annotations
    from rationalyst_jax.mine.store import Provenance, write_triples
    from rationalyst_jax.mine.summary import summarize
    from rationalyst_jax.mine.triples import extract
    from rationalyst_jax.prompts.prompt import load_prompts

    console = Console()
    prompt_set = load_prompts(prompts)
    if documents is not None and annotations is None:
        if model is None:
            raise ArgumentError(None, "--documents needs a --model to annotate them")
        annotated = _annotate(documents, model, prompt_set, annotate, engine, out, console)
    elif annotations is not None and documents is None:
        annotated = read_annotations(annotations)
    else:
        raise ArgumentError(None, "give either --documents or --annotations")
    extraction = extract(annotated, min_similarity)
    config = {
        "annotate": asdict(annotate) | {"int8": engine.int8} if documents else None,
        "annotations": str(annotations) if annotations else None,
        "min_similarity": min_similarity,
    }
    provenance = Provenance(model or "imported", prompt_set.version, config)
    write_triples(out / "triples.parquet", extraction.triples, provenance)

    summary = summarize(extraction, [])
    names = ("documents", "annotated", "faithful", "triples")
    rows: dict[str, object] = {name: getattr(summary, name) for name in names}
    rows |= {f"document: {name}": count for name, count in summary.document_outcomes.items()}
    rows |= {f"rationale: {name}": count for name, count in summary.rationale_outcomes.items()}
    console.print(counts_table("mined", rows))


def _annotate(
    path: Path,
    model: str,
    prompts: "PromptSet",
    config: AnnotateConfig,
    engine: EngineConfig,
    out: Path,
    console: Console,
) -> "list[Annotation]":
    from rationalyst_jax.files.settings import claim
    from rationalyst_jax.lm.engine.open import open_engines
    from rationalyst_jax.lm.weights.open import open_checkpoint
    from rationalyst_jax.mine.annotate import annotate
    from rationalyst_jax.mine.documents import read_documents
    from rationalyst_jax.prompts.prompt import check_prompts
    from rationalyst_jax.world.checkpoint import checkpoint_path

    documents, checkpoint = read_documents(path), open_checkpoint(checkpoint_path(model))
    asked = {
        "model": engine.weights(checkpoint.fingerprint),
        "prompts": prompts.version,
        "annotate": asdict(config),
    }
    file = out / "annotations.jsonl"
    check_prompts(checkpoint.tokenizer, prompts, ["annotate"])
    checkpoint.check_generation()
    claim(out / "annotations.config.json", asked, file)
    [annotator] = open_engines([checkpoint], engine)
    with track(console, "documents annotated", len(documents)) as advance:
        return annotate(documents, annotator, checkpoint.tokenizer, prompts, config, file, advance)
