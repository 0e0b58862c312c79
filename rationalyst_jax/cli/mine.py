"""`rationalyst mine`: documents, or copies annotated elsewhere, become triples."""

from argparse import ArgumentError
from pathlib import Path

from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table
from rationalyst_jax.roles.config import EndpointConfig


def run(
    out: Path,
    prompts: str,
    annotate: AnnotateConfig,
    engine: EngineConfig,
    endpoint: EndpointConfig,
    documents: Path | None = None,
    annotations: Path | None = None,
    model: str | None = None,
    source: str | None = None,
    min_similarity: float = 0.9,
) -> None:
    """Annotate documents with a model, or import annotated ones, and cut them into triples.

    Args:
        out: Folder for triples.parquet and, of own annotations, annotations.jsonl; a killed run continues.
        prompts: A shipped prompt set (llama3, world) or a YAML file.
        documents: JSONL of documents to annotate: text, and id and source where there are any.
        annotations: JSONL of annotated documents to import instead: input, output.
        annotate: How documents are annotated.
        engine: How a checkpoint generates.
        endpoint: How an address is asked.
        model: The annotator: a checkpoint folder ("world": the one shipped), or the address of an
            OpenAI-compatible endpoint (http://host:port/v1); for an import only its name.
        source: Of imported documents that name none; by default the file's name.
        min_similarity: How similar a copy must be to its document (0 to 1) to be used.
    """
    from rationalyst_jax.pipeline.mine import import_annotations, mine
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.prompts.prompt import load_prompts

    console = Console()
    prompt_set = load_prompts(prompts)
    if documents is not None and annotations is None:
        if model is None:
            raise ArgumentError(None, "--documents needs a --model to annotate them")
        if source is not None:
            raise ArgumentError(None, "--source is for --annotations: documents name their own")
        with Models(engine, endpoint) as models, track(console, "documents annotated") as progress:
            summary = mine(
                documents,
                model,
                models,
                prompt_set,
                annotate,
                out,
                min_similarity=min_similarity,
                progress=progress,
            )
    elif annotations is not None and documents is None:
        name = model or "imported"
        summary = import_annotations(
            annotations, name, prompt_set, out, source=source, min_similarity=min_similarity
        )
    else:
        raise ArgumentError(None, "give either --documents or --annotations")

    names = ("documents", "annotated", "faithful", "triples")
    rows: dict[str, object] = {name: getattr(summary, name) for name in names}
    rows |= {f"document: {name}": count for name, count in summary.document_outcomes.items()}
    rows |= {f"rationale: {name}": count for name, count in summary.rationale_outcomes.items()}
    console.print(counts_table("mined", rows))
    if not summary.triples:
        console.print("no triples: the outcomes above say what became of the copies")
