"""`rationalyst stats`: how many tokens the token trees of real data save."""

from argparse import ArgumentError
from pathlib import Path

from rich.console import Console
from rich.table import Table


def run(tokenizer: str, prompts: str, annotations: Path | None = None, triples: Path | None = None) -> None:
    """Count the tokens of separate sequences and of the token trees that share their prefixes.

    Args:
        tokenizer: Folder of a tokenizer, or "world" for that of the shipped model.
        prompts: Prompt set: the name of a shipped one (llama3, world), or a YAML file.
        annotations: JSONL file of annotated documents. Each row has input (the document) and output (its
            annotated copy).
        triples: Parquet file of triples that `rationalyst mine` wrote, instead of annotations.
    """
    from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
    from rationalyst_jax.mine.documents import read_annotations
    from rationalyst_jax.mine.sharing import USES, measure
    from rationalyst_jax.mine.store import read_triples
    from rationalyst_jax.mine.triples import extract
    from rationalyst_jax.prompts.prompt import load_prompts
    from rationalyst_jax.world.checkpoint import checkpoint_path

    encoder = load_tokenizer(checkpoint_path(tokenizer))
    prompt_set = load_prompts(prompts)
    if annotations is not None and triples is None:
        found = list(extract(read_annotations(annotations)).triples)
    elif triples is not None and annotations is None:
        found = read_triples(triples)
    else:
        raise ArgumentError(None, "give either --annotations or --triples")
    if not found:
        raise ValueError(f"{triples or annotations}: holds no triple")

    documents = len({triple.document_id for triple in found})
    title = f"token sharing: {len(found)} rationales of {documents} documents"
    table = Table(title=title, title_justify="left")
    table.add_column("use")
    for heading in ("sequences", "tokens apart", "tree nodes", "ratio"):
        table.add_column(heading, justify="right")
    for use in USES:
        s = measure(found, use, encoder, prompt_set)
        table.add_row(use, str(s.sequences), str(s.apart), str(s.nodes), f"{s.apart / s.nodes:.2f}")
    Console().print(table)
