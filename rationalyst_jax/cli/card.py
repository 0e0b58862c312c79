"""`rationalyst card`: a data set of mined rationales, or a trained model, with a card for others."""

from argparse import ArgumentError
from pathlib import Path

from rich.console import Console


def run(
    rationales: Path | None = None,
    out: Path | None = None,
    model: Path | None = None,
    name: str | None = None,
    licenses: dict[str, str] | None = None,
    without_text: list[str] | None = None,
    prefilter: Path | None = None,
    dedup: Path | None = None,
    decontaminate: Path | None = None,
    base_model: str | None = None,
    datasets: list[str] | None = None,
    benchmarks: list[Path] | None = None,
) -> None:
    """Write the card of a data set, with the data set itself, or of a trained model, beside its checkpoint.

    With --rationales and --out, a data set that `datasets.load_dataset` opens. Its configs are kept (the kept
    rationales) and all (every one, with the reason for each). With --model, the README.md of a RATIONALYST,
    from what its run recorded. No network is needed.

    Args:
        rationales: Parquet file that `rationalyst filter` wrote, or a folder of such files.
        out: New folder to write: README.md, and Parquet files in kept and all.
        model: Run directory of a finished `rationalyst train`, whose hf folder gets the card, or of a
            `rationalyst demo` or `ablate`, where each trained model gets one. A README.md that this command
            did not write, or that was changed, is left as it is, and the command fails.
        name: Title: by default "rationales" of a data set, and the name of its run of a model.
        licenses: Licence of each source and model by its name, as {gsm8k: MIT, model: llama3}. What is not
            named is "not said". Rows of Llama 3 are named in a data set's card also where only the model's
            name says it, as is the licence of a base model.
        without_text: Sources whose text is left out, because their licences ask for it. Rows then have the
            hash of the document and the span.
        prefilter: Folder that `rationalyst prefilter` wrote, or that of this stage in a run over shards, for
            the column prefilter_cosine.
        dedup: Folder that `rationalyst dedup` wrote, for the table of duplicates.
        decontaminate: Folder that `rationalyst decontaminate` wrote, for the table of contamination.
        base_model: Name on the Hugging Face Hub of the model that training began with; by default what the
            folder of a Hub's cache says.
        datasets: Names on the Hugging Face Hub of data sets that the model was trained on.
        benchmarks: Run directories of `rationalyst benchmark`, whose results with this checkpoint the card
            has.
    """
    of_data = {"rationales": rationales, "out": out, "without_text": without_text, "prefilter": prefilter}
    of_data |= {"dedup": dedup, "decontaminate": decontaminate}
    of_models = {"base_model": base_model, "datasets": datasets, "benchmarks": benchmarks}
    others = of_models if model is None else of_data
    if wrong := [f"--{key}" for key, value in others.items() if value is not None]:
        raise ArgumentError(
            None, f"{', '.join(wrong)}: {'only with' if model is None else 'not with'} --model"
        )
    if model is not None:
        from rationalyst_jax.pipeline.model_card import model_cards

        written = model_cards(
            model,
            name=name,
            licenses=licenses or {},
            base_model=base_model,
            datasets=datasets or (),
            benchmarks=benchmarks or (),
        )
    elif rationales is not None and out is not None:
        from rationalyst_jax.pipeline.card import data_set

        readme = data_set(
            rationales,
            out,
            name=name or "rationales",
            licenses=licenses or {},
            without_text=without_text or (),
            prefilter=prefilter,
            dedup=dedup,
            decontaminate=decontaminate,
        )
        written = [readme]
    else:
        raise ArgumentError(None, "give --rationales and --out, or --model")
    for readme in written:
        Console().print(f"{readme}: written", markup=False, soft_wrap=True, highlight=False)
