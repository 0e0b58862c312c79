"""What the prefilter keeps of real texts: of The Pile's kinds and C4, mixed with problems of three tasks.

    python prefilter.py --encoder MINILM --out FOLDER

Of GSM8K, MATH and ECQA 500 problems of the training split, with solutions or explanations, are documents, and
the others are references. Prints what `rationalyst prefilter` prints. Nothing is timed. A killed run goes on.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from documents import shared_data
from measure import arguments
from rich.console import Console

from rationalyst_jax.files.rows import Row, read_rows, write_rows
from rationalyst_jax.mine.config import PrefilterConfig
from rationalyst_jax.pipeline.prefilter import prefilter
from rationalyst_jax.report.prefilter import references_table, sources_table
from rationalyst_jax.report.progress import track

MIXED = 500  # problems of a task among the documents


def gsm8k(row: Row) -> str:
    solution = re.sub(r"<<.*?>>", "", row["answer"].split("####")[0]).strip()
    return f"{row['question']}\n{solution}"


def math(row: Row) -> str:
    return f"{row['problem']}\n{row['solution']}"


def ecqa(row: Row) -> str:
    choices = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
    return "\n".join([row["question"], *(f"{label}. {text}" for label, text in choices), row["explanation"]])


SETS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "gsm8k": ("gsm8k/train.jsonl", gsm8k),
    "math": ("math/train.jsonl", math),
    "ecqa": ("ecqa/ecqa_train.jsonl", ecqa),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--encoder", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--references", type=int, default=1000, help="questions that are used of each set")
    options = parser.parse_args()
    console = Console()
    references = mix(shared_data(), options.out)
    config = PrefilterConfig(max_references=options.references)
    with track(console, "documents scored") as progress:
        summary = prefilter(
            options.out / "mixed.jsonl",
            references,
            options.encoder,
            config,
            options.out / "kept",
            progress=progress,
        )
    console.print(references_table(summary, calibrated=True))
    console.print(sources_table(summary))
    if options.json:
        sources = {name: vars(of_source) for name, of_source in summary.sources.items()}
        print(json.dumps({"alpha": summary.alpha, "sources": sources}))


def mix(shared: Path, out: Path) -> dict[str, str]:
    """Writes the documents and the references' files; gives the latter by their tasks."""
    draw = random.Random(0)
    pile = [row for _, row in read_rows(shared / "pile_like" / "mixed.jsonl")]
    documents = [
        {"id": f"pile-{i}", "text": row["text"], "source": row["meta"]["pile_set_name"]}
        for i, row in enumerate(pile)
    ]
    references = {}
    for name, (file, text_of) in SETS.items():
        rows = [row for _, row in read_rows(shared / file)]
        draw.shuffle(rows)
        path = out / f"{name}_train.jsonl"
        write_rows(path, rows[:-MIXED])
        references[name] = str(path)
        documents += [
            {"id": f"{name}-{i}", "text": text_of(row), "source": name.upper()}
            for i, row in enumerate(rows[-MIXED:])
        ]
    write_rows(out / "mixed.jsonl", documents)
    return references


if __name__ == "__main__":
    main()
