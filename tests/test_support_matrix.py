"""The table of what works where says what tests have shown, and nothing more."""

import re
from pathlib import Path

import pytest
from support_matrix import FEATURES, LEVELS, PLATFORMS, level, main, passed, table

ROOT = Path(__file__).parents[1]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one[x]"/>
<testcase classname="tests.test_a" name="test_two"><failure message="no"/></testcase>
<testcase classname="tests.test_b" name="test_gone"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def test_every_test_that_is_named_exists():
    for ways in FEATURES.values():
        for (platform, how), tests in ways.items():
            assert platform in PLATFORMS and how in LEVELS
            for test in tests:
                file, _, name = re.sub(r"\\.*", "", test).partition("::")
                assert f"def {name or 'test_'}" in (ROOT / "tests" / f"{file}.py").read_text(), test


def test_what_failed_or_was_skipped_has_shown_nothing(tmp_path: Path):
    (tmp_path / "a.xml").write_text(REPORT)
    outcomes = passed([tmp_path / "a.xml"])
    assert outcomes == {"test_a::test_one[x]": True, "test_a::test_two": False}
    ways = {
        ("CPU", "run"): ["test_a::test_one"],
        ("TPU", "run"): ["test_a"],
        ("TPU", "compiled"): ["test_a::test_one"],
        ("NVIDIA GPU", "run"): ["test_b"],
    }
    assert [level(ways, platform, outcomes) for platform in PLATFORMS] == ["run", "not yet", "compiled"]


def test_a_page_with_another_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    report, page = tmp_path / "a.xml", tmp_path / "page.md"
    report.write_text(REPORT)
    page.write_text(f"# Support\n\n{table(passed([report]))}")
    assert main([str(report), "--check", str(page)]) == 0
    first = "| attention over token trees | not yet | {} | not yet |"
    assert first.format("not yet") in page.read_text()
    page.write_text(page.read_text().replace(first.format("not yet"), first.format("run")))
    assert main([str(report), "--check", str(page)]) == 0  # nothing here can contradict it
    page.write_text(page.read_text().replace("not yet", "run", 1))
    assert main([str(report), "--check", str(page)]) == 1
    assert "has another table" in capsys.readouterr().err
