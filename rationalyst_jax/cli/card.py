"""`rationalyst card`: mined rationales as a data set that others can load, with a card."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape


def run(
    rationales: Path,
    out: Path,
    name: str = "rationales",
    licenses: dict[str, str] | None = None,
    without_text: list[str] | None = None,
    prefilter: Path | None = None,
    dedup: Path | None = None,
    decontaminate: Path | None = None,
) -> None:
    """Write rationales as a data set that `datasets.load_dataset` opens, with a card that says what it is.

    Its configs are kept (the kept rationales) and all (every one, with the reason for each).

    Args:
        rationales: Parquet file that `rationalyst filter` wrote, or a folder of such files.
        out: New folder to write: README.md, and Parquet files in kept and all.
        name: Title of the data set.
        licenses: Licence of each source and model by its name, as {gsm8k: MIT, model: llama3}. What is not
            named is "not said". Rows of Llama 3 are named in the card also where only the model's name says
            it.
        without_text: Sources whose text is left out, because their licences ask for it. Rows then have the
            hash of the document and the span.
        prefilter: Folder that `rationalyst prefilter` wrote, or that of this stage in a run over shards, for
            the column prefilter_cosine.
        dedup: Folder that `rationalyst dedup` wrote, for the table of duplicates.
        decontaminate: Folder that `rationalyst decontaminate` wrote, for the table of contamination.
    """
    from rationalyst_jax.pipeline.card import data_set

    readme = data_set(
        rationales,
        out,
        name=name,
        licenses=licenses or {},
        without_text=without_text or (),
        prefilter=prefilter,
        dedup=dedup,
        decontaminate=decontaminate,
    )
    Console().print(f"{escape(str(readme))}: written", soft_wrap=True, highlight=False)
