"""The benchmark of graders: the cases through our readings and lm-evaluation-harness' own filters."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the graders of others are compared with where they are installed")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def graders():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return import_module("graders")
    finally:
        sys.path.pop(0)


def test_ours_gets_every_case_right_and_the_harness_what_its_patterns_say(graders):
    Case = graders.Case
    cases = [
        Case("arc", "The answer is (B).", "B", "right", "brackets", ("tin", "zinc")),
        Case("arc", "The answer is: (B).", "B", "right", "brackets", ("tin", "zinc")),
        Case("arc", "The answer is A or B.", "A", "unanswered", "several", ("tin", "zinc")),
    ]
    headings, rows = graders.table(cases)
    custom = headings.index("mmlu_pro custom-extract")
    assert [row[custom] for row in rows] == ["1 / 0", "0 / 1", "1 / 1"]
    assert [row[headings.index("ours, strict")] for row in rows] == ["·", "·", "·"]
    assert [row[:2] for row in rows] == [["brackets", "2"], ["several", "1"], ["all", "3"]]
    assert graders.markdown("arc", headings, rows).splitlines()[-1].startswith("| all | 3 | · |")


def test_numbers_go_through_the_filters_that_their_files_configure(graders):
    Case = graders.Case
    cases = [
        Case("gsm8k", "#### 1,260", "1260", "right", "thousands", ()),
        Case("gsm8k", "The answer is 10-5.", "10", "unanswered", "expression", ()),
    ]
    headings, rows = graders.table(cases)
    told = dict(zip(headings, rows[-1], strict=True))
    assert told["ours, strict"] == told["gsm8k strict"] == "·"
    assert told["gsm8k_cot strict"] == "1 / 1"  # it reads 10 in "10-5", and knows no "####"
