"""`rationalyst calibrate`: the threshold for a wanted precision, from a few labeled rationales."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from rationalyst_jax.files.rows import id_field, read_table
from rationalyst_jax.report.tables import counts_table

Gains = Mapping[tuple[str, int], float | None]


def run(scored: Path, labels: Path, precision: float = 0.8) -> None:
    """Find the smallest tau whose kept rationales are good with the wanted precision.

    Args:
        scored: Parquet file that `rationalyst filter` wrote.
        labels: JSONL file of labels. Each row has document_id, index (of the rationale in the document) and
            good (true or false).
        precision: Share of good rationales that is wanted among the kept ones.
    """
    from rationalyst_jax.mine.calibrate import LabeledGain, calibrate
    from rationalyst_jax.mine.store import read_filtered

    gains: Gains = {(t.document_id, t.index): t.gain for t in read_filtered(scored)}
    result = calibrate([LabeledGain(*label) for label in _labeled(labels, gains, scored)], precision)
    rows = {
        "tau (nats)": result.tau,
        "precision": result.precision,
        "precision, lower bound (95 %)": result.precision_low,
        "recall": result.recall,
        "kept": f"{result.kept} of {result.total} labeled",
    }
    Console().print(counts_table(f"tau for precision {precision}", rows))


def _labeled(labels: Path, gains: Gains, scored: Path) -> Iterator[tuple[float, bool]]:
    """Gain and label of each labeled rationale; those that were too long to be scored are left out."""
    seen: set[tuple[str, int]] = set()
    for place, row in read_table(labels):
        document = id_field(row, "document_id", place)
        index = row.get("index")
        good = row.get("good")
        if not isinstance(index, int) or (document, index) not in gains:
            raise ValueError(f"{place}: {scored} has no rationale {index!r} of document {document!r}")
        if (document, index) in seen:
            raise ValueError(f"{place}: rationale {index} of document {document!r} is labeled twice")
        if not isinstance(good, bool):
            raise ValueError(f"{place}: 'good' must be true or false, found {good!r}")
        seen.add((document, index))
        gain = gains[document, index]
        if gain is not None:
            yield gain, good
