"""What mining yields: kept rationales for each thousand tokens written and for each GFLOP.

    python mining.py RUN...

Each RUN is the folder of an experiment (`rationalyst demo --run_dir RUN`) that has come past its filter. What
annotating took is in its ledger. The filter's own work is left out: it is the same model's, for each triple.
"""

import json
from pathlib import Path

from measure import arguments
from rich.console import Console
from rich.table import Table

from rationalyst_jax.files.whole import read_json
from rationalyst_jax.mine.annotate import read_usage


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()

    results = {}
    for run in options.runs:
        mined = read_json(run / "stages" / "mine.json")["result"]
        filtered = read_json(run / "stages" / "filter.json")["result"]
        used = read_usage(run / "mine" / "annotations.jsonl")
        results[str(run)] = {
            "documents": mined["documents"],
            "triples": mined["triples"],
            "kept": filtered["kept"],
            "tokens": used.generated,
            "gflop": used.flops / 1e9,
        }

    table = Table(title="what mining yields", title_justify="left")
    table.add_column("run")
    headings = ("documents", "tokens written", "GFLOP", "triples", "kept", "per 1,000 tokens", "per GFLOP")
    for heading in headings:
        table.add_column(heading, justify="right")
    for run, of in results.items():
        per_token = f"{1000 * of['kept'] / of['tokens']:.2f}"
        per_flop = f"{of['kept'] / of['gflop']:.2f}"
        counts = (of["documents"], of["tokens"], round(of["gflop"]), of["triples"], of["kept"])
        table.add_row(run, *map(str, counts), per_token, per_flop)
    Console().print(table)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
