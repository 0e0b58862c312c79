"""`rationalyst mine`: documents, or annotations that are there already, become triples."""

from argparse import ArgumentError
from pathlib import Path

from rich.console import Console

from rationalyst_jax.cli.shard import shard_from
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table, usage_counts
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
    shard: str = "auto",
) -> None:
    """Annotate documents with a model, or import annotated ones, and cut them into triples.

    Args:
        out: Folder to write triples.parquet to, and annotations.jsonl where --model annotates. A killed run
            continues there.
        prompts: Prompt set: the name of a shipped one (llama3, world), or a YAML file.
        documents: Documents to annotate, a file or a folder of shards: JSONL, JSON, CSV (.gz and .zst too) or
            Parquet. Each row has text, and may have id and source.
        annotations: File of documents, in the same formats, that were annotated before or elsewhere, to
            import instead. Each row has input (the document) and output (its annotated copy), or as mine
            wrote it places (what was inserted), and may have id and source.
        annotate: How documents are annotated.
        engine: Models opened from checkpoint folders.
        endpoint: Models behind an address.
        model: Model that annotates: a checkpoint folder, "world" for the shipped model, or the address of an
            OpenAI-compatible endpoint (http://host:port/v1). With --annotations it is only a name.
        source: Source of imported documents that name none; by default the name of the file.
        min_similarity: Smallest similarity of a copy to its document (0 to 1) with which the copy is used.
        shard: Which part of the work is this process's, where hosts divide it: "I/N" for the I-th, from 0, of
            N shards. "auto" finds it where Slurm or GKE starts several processes, "tpu" asks the metadata
            server of a TPU VM, and "none" is one process alone. Imports are not divided.
    """
    part = shard_from(shard)
    from rationalyst_jax.pipeline.mine import import_annotations, mine
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.prompts.prompt import load_prompts
    from rationalyst_jax.roles.usage import Usage

    console = Console()
    prompt_set = load_prompts(prompts)
    if documents is not None and annotations is None:
        if model is None:
            raise ArgumentError(None, "--documents needs a --model to annotate them")
        if source is not None:
            raise ArgumentError(None, "--source is for --annotations: documents name their own")
        with Models(engine, endpoint) as models, track(console, "documents annotated") as progress:
            summary, usage = mine(
                documents,
                model,
                models,
                prompt_set,
                annotate,
                out,
                min_similarity=min_similarity,
                shard=part,
                progress=progress,
            )
    elif annotations is not None and documents is None:
        usage = Usage()
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
    rows |= usage_counts(usage)
    console.print(counts_table("mined", rows))
    if not summary.triples:
        console.print("no triples: the outcomes above say what became of the documents")
