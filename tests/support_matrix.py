"""What was seen to work where, told by the tests that passed.

    python tests/support_matrix.py build/junit/*.xml              prints the table as Markdown
    python tests/support_matrix.py build/junit/*.xml --check PAGE fails where the page has another table

The files are what pytest writes with --junitxml: `make test`, `make aot`, and on a machine with a GPU
`pytest -m gpu --junitxml build/junit/gpu.xml`.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

# The best first. A cell has those of which all tests have passed, but beside "run" nothing else is said.
LEVELS = ("run", "interpreted", "compiled")
PLATFORMS = ("CPU", "NVIDIA GPU", "TPU")

# For each feature, where and how it is tested: "file", or a regular expression of "file::test".
FEATURES: Mapping[str, Mapping[tuple[str, str], Sequence[str]]] = {
    "attention over token trees": {
        ("CPU", "run"): ["test_attention::test_random_forests", "test_attention::test_forests"],
        ("NVIDIA GPU", "run"): ["test_gpu::test_attention_over_trees"],
        ("NVIDIA GPU", "interpreted"): ["test_attention::test_triton"],
        ("NVIDIA GPU", "compiled"): ["test_attention_targets::test_the_triton_kernels_compile"],
        ("TPU", "interpreted"): [r"test_attention::test_forests_of_every_kind\[.*pallas"],
        ("TPU", "compiled"): ["test_attention_targets::test_the_tpu_kernels_compile"],
    },
    "likelihood filter": {
        ("CPU", "run"): ["test_filter", "test_likelihood"],
        ("NVIDIA GPU", "run"): ["test_gpu::test_log_probabilities_and_their_gradients"],
        ("TPU", "compiled"): ["test_filter_targets"],
    },
    "engine: mine, reason, serve": {
        ("CPU", "run"): ["test_engine", "test_engine_sharing", "test_serve"],
        ("NVIDIA GPU", "run"): ["test_gpu::test_the_engine_samples"],
        ("TPU", "compiled"): ["test_engine_targets"],
    },
    "fine-tuning": {
        ("CPU", "run"): ["test_train", "test_lora"],
        ("TPU", "compiled"): ["test_plan::test_ready_configs_fit"],
    },
    "fine-tuning over several devices": {
        ("CPU", "run"): ["test_train_mesh"],
        ("TPU", "compiled"): [
            "test_sharding_targets::test_every_division",
            "test_plan::test_ready_configs_fit",
        ],
    },
    "fine-tuning over several processes": {("CPU", "run"): ["test_train_processes"]},
    "reasoning and mining divided among hosts": {("CPU", "run"): ["test_hosts"]},
    "sentence encoder (prefilter)": {("CPU", "run"): ["test_encoder", "test_prefilter"]},
    "export, and back to Hugging Face": {("CPU", "run"): ["test_hf", "test_certificate"]},
    "GGUF, in and out": {("CPU", "run"): ["test_gguf", "test_gguf_tokenizer"]},
    "notebooks": {("CPU", "run"): ["test_notebooks"]},
}


def passed(reports: Iterable[Path]) -> dict[str, bool]:
    """The tests of all reports as "file::name", and whether each passed. Skipped ones are left out."""
    outcomes: dict[str, bool] = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            states = {child.tag for child in case} & {"failure", "error", "skipped"}
            if states != {"skipped"}:
                outcomes[name] = outcomes.get(name, True) and not states
    return outcomes


def level(ways: Mapping[tuple[str, str], Sequence[str]], platform: str, outcomes: Mapping[str, bool]) -> str:
    """How a feature was seen to work on a platform."""
    shown = [
        how
        for how in LEVELS
        if (wanted := ways.get((platform, how))) and all(_holds(test, outcomes) for test in wanted)
    ]
    return "run" if "run" in shown else ", ".join(shown) or "not yet"


def _holds(wanted: str, outcomes: Mapping[str, bool]) -> bool:
    """Whether tests of that name were run, and all of them passed."""
    beginning = wanted if "::" in wanted else f"{wanted}::"
    found = [ok for name, ok in outcomes.items() if re.match(beginning, name)]
    return bool(found) and all(found)


def table(outcomes: Mapping[str, bool]) -> str:
    """The whole table as Markdown."""
    rows = [["feature", *PLATFORMS], ["---"] * (1 + len(PLATFORMS))]
    rows += [[name, *(level(ways, at, outcomes) for at in PLATFORMS)] for name, ways in FEATURES.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="what pytest wrote with --junitxml")
    parser.add_argument("--check", type=Path, help="a page that must have this table")
    given = parser.parse_args(arguments)
    made = table(passed(given.reports))
    print(made, end="")
    if given.check is not None and not _agree(_rows(given.check.read_text(encoding="utf-8")), _rows(made)):
        print(f"{given.check}: has another table than the tests that passed give", file=sys.stderr)
        return 1
    return 0


def _rows(page: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]


def _agree(said: Sequence[Sequence[str]], made: Sequence[Sequence[str]]) -> bool:
    """Whether two tables are equal. Only a machine with a GPU can show that something runs on one: where the
    page says so, this machine cannot contradict it."""
    at = 1 + PLATFORMS.index("NVIDIA GPU")
    return len(said) == len(made) and all(
        [*one[:at], *one[at + 1 :]] == [*other[:at], *other[at + 1 :]] and one[at] in ("run", other[at])
        for one, other in zip(said, made, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
