"""How long a command takes until it works: the first run, with an empty cache of programs, and the second.

Each command gets next to nothing to do: two documents to mine, two steps to train, two questions to solve.
Both runs are processes of their own. What the second takes is what its work takes, and what is not cached:
Python, imports, weights, tracing. CPU seconds are of all threads.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

from measure import print_table

from rationalyst_jax.files.rows import write_rows

SETTINGS = {
    "mine": "--documents documents.jsonl --prompts llama3 --annotate.method insert --annotate.places line "
    "--annotate.candidates 2 --annotate.max_rationale_tokens 16",
    "train": "--rationales rationales.jsonl --prompts llama3 --train.lora.rank 8 --train.steps 2 "
    "--train.batch_examples 2 --train.row_length 512 --train.microbatch_rows 1 "
    "--train.validation_fraction 0",
    "reason": "--task gsm8k --questions questions.jsonl --prompts llama3 --reason.strategy implicit "
    "--reason.max_steps 2 --reason.max_step_tokens 16 --reason.max_rationale_tokens 16",
}
TEXT = "Question: Ann has 3 apples and buys 2 more. How many has she?\nAnswer: "


def prepare(folder: Path) -> None:
    """The inputs of all commands."""
    command = [sys.executable, "-m", "rationalyst_jax.cli.main", "world"]
    for what in ("documents", "questions"):
        subprocess.run(
            [*command, what, "--count", "2", "--out", str(folder / f"{what}.jsonl")],
            check=True,
            capture_output=True,
        )
    row = {"preceding": TEXT, "rationale": "Add both numbers."}
    write_rows(folder / "rationales.jsonl", ({"document_id": str(n), **row} for n in range(4)))


def run(command: str, model: Path, folder: Path, turn: int) -> tuple[str, ...]:
    """Wall and CPU seconds of one run, and what it says of its programs."""
    out = folder / f"{command}-{turn}"
    where = {
        "mine": f"--model {model} --out {out}",
        "train": f"--model {model} --run_dir {out}",
        "reason": f"--agent {model} --rationalyst {model} --out {out}.jsonl",
    }[command]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / f"cache-{command}")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rationalyst_jax.cli.main",
            command,
            *SETTINGS[command].split(),
            *where.split(),
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = re.findall(r"programs: (.*)", done.stdout + done.stderr)
    return command, ("first", "second")[turn], f"{seconds:.1f}", f"{cpu:.1f}", *said


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a Hugging Face checkpoint")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for command in SETTINGS:
            rows += [run(command, options.model.resolve(), Path(name), turn) for turn in (0, 1)]
    print_table(
        f"with {options.model.name}",
        ("command", "run", "seconds", "CPU s", "programs"),
        rows,
    )


if __name__ == "__main__":
    main()
