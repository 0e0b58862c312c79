"""The page of a run says what the run says, and the terminal shows a question as it does."""

import base64
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from cli_files import rationalyst
from finished_run import HOSTILE, QUESTIONS, RUNS, unpacked
from rich.console import Console
from rich.table import Table

from rationalyst_jax.pipeline import page
from rationalyst_jax.pipeline.report import report_run, report_traces
from rationalyst_jax.reason.traces import Step, Trace, read_traces
from rationalyst_jax.report.html import table_data
from rationalyst_jax.report.question import question_view
from rationalyst_jax.report.style import percent, points
from rationalyst_jax.report.trace_view import (
    answer_span,
    first_parting,
    likelihood_choices,
    margins,
    smallest_margin,
)
from rationalyst_jax.tasks.benchmarks import task_named

# ---- The page of a run ----


def test_the_figures_of_a_page_are_those_of_the_summary(finished: tuple[Path, dict]):
    run, summary = finished
    main = unpacked(run / "report.html")["main"]
    tables = {table["title"]: table for table in main["tables"]}
    rows = {row[0]: row[1:] for row in tables[f"strategies (n = {QUESTIONS})"]["rows"]}
    assert set(rows) == set(RUNS)
    for name, result in summary["strategies"].items():
        cells = [percent(result["accuracy"], result["low"], result["high"])]
        for other in ("random", "likelihood"):
            versus = result[f"vs_{other}"]
            cells.append(
                "–" if versus is None else points(versus["difference"], versus["low"], versus["high"])
            )
        assert rows[name] == cells
    [costs] = main["costs"]
    assert [point["interval"][0] for point in costs["points"]] == [
        result["accuracy"] for result in summary["strategies"].values()
    ]
    [funnel] = main["funnels"]
    bars = dict(funnel["bars"])
    [mined] = summary["mining"]
    assert bars["triples"] == mined["triples"] and bars["kept: gain"] == mined["kept"]


def test_every_question_is_graded_on_a_page_as_in_the_summary(finished: tuple[Path, dict]):
    run, summary = finished
    [of_set] = unpacked(run / "report.html")["main"]["sets"]
    assert len(of_set["questions"]) == QUESTIONS
    for of_run in of_set["runs"]:
        result = summary["strategies"][of_run["name"]]
        verdicts = Counter(row[2] for row in of_run["rows"])
        assert verdicts["right"] == round(result["accuracy"] * result["n"])
        assert verdicts["unanswered"] == result["unanswered"]


def test_steps_stand_on_a_page_with_margins_and_what_likelihood_took(finished: tuple[Path, dict]):
    run, _ = finished
    parts = unpacked(run / "report.html")
    runs = {of["name"]: of for of in parts["main"]["sets"][0]["runs"]}
    written = {name: read_traces(run / "reason" / f"{name}.jsonl") for name in RUNS}
    for shown, trace, other in zip(
        parts[runs["implicit"]["part"]], written["implicit"], written["likelihood"], strict=True
    ):
        assert [step["text"] for step in shown["steps"]] == [step.text for step in trace.steps]
        # Recorded scores say what `likelihood` would take, and where there are none its own trace does.
        took = [
            of.choice if ours.scores_without is None else 0
            for ours, of in zip(trace.steps[:2], other.steps[:2], strict=True)
        ]
        assert [step["likelihood"] for step in shown["steps"][:2]] == took
        scores = trace.steps[1].scores
        assert scores is not None
        best_other = max(s for i, s in enumerate(scores) if i != trace.steps[1].choice)
        assert shown["steps"][1]["margins"][trace.steps[1].choice] == pytest.approx(
            -0.1 - best_other, abs=1e-4
        )


def test_a_document_stands_on_a_page_with_each_gain_and_why_it_was_kept(finished: tuple[Path, dict]):
    run, _ = finished
    parts = unpacked(run / "report.html")
    [mining] = parts["main"]["mining"]
    documents = parts[mining["part"]]
    assert len(documents) == len(mining["documents"]) == 24
    assert documents[0]["text"] == f"{HOSTILE[0]} 𝒳 one. Two. Three."
    assert [one["reason"] for one in documents[0]["rationales"]] == ["too_long"] * 2
    assert mining["documents"][1] == ["d01", "world", 2, 1, 0.2, ""]


def test_documents_without_a_usable_rationale_follow_with_why(finished: tuple[Path, dict]):
    parts = unpacked(finished[0] / "report.html")
    [mining] = parts["main"]["mining"]
    assert [(row[0], *row[2:]) for row in mining["documents"][20:]] == [
        ("d20", 0, 0, None, "too long"),
        ("d21", 0, 0, None, "changed; rationales: none"),
        ("d22", 0, 0, None, "exact; rationales: 1 copied"),
        ("d23", 0, 0, None, "no place; rationales: none"),
    ]
    assert [one["text"] for one in parts[mining["part"]][20:]] == [f"Text {n}." for n in range(20, 24)]
    assert parts[mining["part"]][22]["wrote"] == "Text <BOT>Text<EOT>22."


def test_the_same_run_gives_the_same_page(finished: tuple[Path, dict], tmp_path: Path):
    run, _ = finished
    report_run(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (run / "report.html").read_bytes()


def test_a_page_allows_its_own_script_and_style_and_nothing_else(finished: tuple[Path, dict]):
    text = (finished[0] / "report.html").read_text()
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        [inside] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{hashed}'"
    assert rules["default-src"] == "'none'" and rules["require-trusted-types-for"] == "'script'"
    assert set(re.findall(r"\w+://[\w./]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert "innerHTML" not in text


def test_above_its_size_a_page_leaves_steps_out_and_says_so(
    finished: tuple[Path, dict], tmp_path, monkeypatch
):
    run, _ = finished
    whole = unpacked(run / "report.html")
    traces = {name: rows for name, rows in whole.items() if name.startswith("traces")}
    for step in [step for rows in traces.values() for trace in rows for step in trace["steps"]]:
        step["gains"] = None
    size = sum(len(page.packed(rows)) for rows in traces.values())
    monkeypatch.setattr(page, "MOST_BYTES", size // 2)
    report_run(run, tmp_path / "short.html")
    short = unpacked(tmp_path / "short.html")
    assert len(short["traces-0"]) == int(0.95 * (size // 2) / size * QUESTIONS)
    assert "the gains are left out" in short["main"]["notes"][0]
    assert "are on this page" in short["main"]["notes"][1]
    assert short["main"]["sets"] == whole["main"]["sets"]


def test_above_its_size_a_page_first_leaves_the_gains_of_tokens_out(
    finished: tuple[Path, dict], tmp_path, monkeypatch
):
    run, _ = finished
    whole = unpacked(run / "report.html")
    traces = {name: rows for name, rows in whole.items() if name.startswith("traces")}
    assert any(step["gains"] for rows in traces.values() for trace in rows for step in trace["steps"])
    size = sum(len(page.packed(rows)) for rows in traces.values())
    monkeypatch.setattr(page, "MOST_BYTES", size - 1)
    report_run(run, tmp_path / "bare.html")
    bare = unpacked(tmp_path / "bare.html")
    assert ["the gains are left out" in note for note in bare["main"]["notes"]] == [True]
    for name, rows in traces.items():
        assert len(bare[name]) == len(rows)
        assert not any(step["gains"] for trace in bare[name] for step in trace["steps"])


def test_many_documents_are_drawn_evenly_and_the_page_says_so(
    finished: tuple[Path, dict], tmp_path, monkeypatch
):
    monkeypatch.setattr(page, "MOST_DOCUMENTS", 5)
    report_run(finished[0], tmp_path / "few.html")
    main = unpacked(tmp_path / "few.html")["main"]
    assert [row[0] for row in main["mining"][0]["documents"]] == ["d00", "d05", "d11", "d17", "d23"]
    assert "24 documents were annotated; 5" in main["notes"][0]


# ---- Traces without a run ----


def test_traces_are_graded_and_compared_with_the_first(finished: tuple[Path, dict], tmp_path: Path):
    run, summary = finished
    runs = {name: [run / "reason" / f"{name}.jsonl"] for name in ("likelihood", "implicit")}
    source = run / "data" / "test.jsonl"
    report_traces(task_named("gsm8k"), source, runs, tmp_path / "page.html")
    graded, compared, _ = unpacked(tmp_path / "page.html")["main"]["tables"]
    for row in graded["rows"]:
        result = summary["strategies"][row[0]]
        assert row[1] == percent(result["accuracy"], result["low"], result["high"])
    versus = summary["strategies"]["implicit"]["vs_likelihood"]
    assert compared["rows"][0][1] == points(versus["difference"], versus["low"], versus["high"])


def test_samples_of_a_question_each_have_a_line_and_a_trace(finished: tuple[Path, dict], tmp_path: Path):
    run, _ = finished
    runs = {"both": [run / "reason" / f"{name}.jsonl" for name in ("likelihood", "implicit")]}
    source = run / "data" / "test.jsonl"
    report_traces(task_named("gsm8k"), source, runs, tmp_path / "page.html", limit=10)
    parts = unpacked(tmp_path / "page.html")
    [both] = parts["main"]["sets"][0]["runs"]
    assert [row[:2] for row in both["rows"]] == [[i // 2, i % 2] for i in range(20)]
    alone = read_traces(run / "reason" / "implicit.jsonl")
    assert [one["steps"][1]["text"] for one in parts[both["part"]][1::2]] == [
        trace.steps[1].text for trace in alone[:10]
    ]


def test_traces_of_a_question_that_was_changed_are_refused(finished: tuple[Path, dict], tmp_path: Path):
    run, _ = finished
    changed = tmp_path / "changed.jsonl"
    changed.write_text((run / "data" / "test.jsonl").read_text().replace("on day 9?", "on day nine?"))
    runs = {"implicit": [run / "reason" / "implicit.jsonl"]}
    with pytest.raises(
        ValueError, match=r"implicit\.jsonl: question 'q09' had another text when it was solved"
    ):
        report_traces(task_named("gsm8k"), changed, runs, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_its_page_into_the_run(finished: tuple[Path, dict], tmp_path: Path, capsys):
    run, _ = finished
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert rationalyst(f"report --run {run}") == 0
    assert (run / "report.html").read_bytes() == page
    assert "report.html: 0." in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"mining": {"documents": 25}}, {"mining": None}])
@pytest.mark.parametrize("command", ["report --run", "card --model"])
def test_a_summary_of_an_older_version_is_one_line(
    finished: tuple[Path, dict], tmp_path: Path, capsys, command: str, changes: dict
):
    run, summary = finished
    for name in ("experiment.config.json", "versions.json"):
        shutil.copy(run / name, tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(summary | changes))
    assert rationalyst(f"{command} {tmp_path}") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{tmp_path}/summary.json: no summary" in told


# ---- What can be seen in a trace ----


def step(*candidates: str, choice: int = 0, scores: tuple[float, ...] | None = None) -> Step:
    return Step(candidates[choice], "stop", candidates, choice, scores)


def test_a_margin_is_above_the_best_other_text():
    of = step("a", "a", "b", "c", scores=(-1.0, -1.0, -1.5, -3.0))
    assert margins(of) == [0.5, 0.5, -0.5, -2.0]
    assert margins(step("a", "a", scores=(-1.0, -1.0))) is None  # no other text
    assert margins(step("a", "b")) is None  # not ranked
    trace = Trace("q", "implicit", None, "end", (of, step("a", "b", scores=(0.0, -0.2))), (), {}, 0.0)
    assert smallest_margin(trace) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("So 12 + 3 = 15. The answer is 15.", "15", "15"),
        ("It costs $1,234 in all.", "1234", "1,234"),
        ("The answer is 150.", "15", None),
        ("The answer is x + 1", "x+1", "x + 1"),
        ("The answer is 1/2.", "0.5", None),
        ("nothing", None, None),
        ("𝒳𝒳 7 7!", "7", "7"),
    ],
)
def test_an_answer_is_found_where_it_stands_last(text: str, answer: str | None, found: str | None):
    span = answer_span(text, answer)
    assert (None if span is None else text[slice(*span)]) == found
    assert span is None or found not in text[span[1] :].split(".")


def test_two_trajectories_part_where_their_texts_do():
    a = [step("x"), step("y"), step("z")]
    assert first_parting(a, a) is None
    assert first_parting(a, [step("x"), step("w"), step("z")]) == 1
    assert first_parting(a, a[:2]) == 2


def test_what_likelihood_would_take_is_known_until_the_two_part():
    steps = [step("a", "b"), step("c", "d"), step("e", "f")]
    likelihood = [step("a", "b"), step("c", "d", choice=1), step("e", "f", choice=1)]
    assert likelihood_choices(steps, likelihood) == [0, 1, None]
    assert likelihood_choices(steps, [step("a", "other")]) == [None, None, None]


def test_recorded_scores_say_what_likelihood_would_take():
    recorded = Step("b", "stop", ("a", "b"), 1, (-2.0, -1.0), scores_without=(-1.0, -3.0))
    assert likelihood_choices([recorded, step("c", "d")]) == [0, None]
    assert likelihood_choices([recorded], [step("a", "b", choice=1)]) == [0]


def test_a_table_of_the_terminal_is_the_same_on_a_page():
    table = Table(title=r"runs \[all]", caption="n = 3")
    table.add_column("run")
    table.add_column("% [95 %]", justify="right")
    table.add_row(r"\[bold]", "40.0 [30.1, 50.2]")
    assert table_data(table) == {
        "title": "runs [all]",
        "caption": "n = 3",
        "columns": [{"name": "run", "right": False}, {"name": "% [95 %]", "right": True}],
        "rows": [["[bold]", "40.0 [30.1, 50.2]"]],
    }


# ---- The terminal ----


def test_a_terminal_shows_a_question_as_the_page_does(finished: tuple[Path, dict], capsys, monkeypatch):
    run, _ = finished
    monkeypatch.setenv("COLUMNS", "150")
    files = " ".join(str(run / "reason" / f"{name}.jsonl") for name in ("implicit", "likelihood"))
    questions = f"--task gsm8k --questions {run / 'data' / 'test.jsonl'}"
    assert rationalyst(f"show --traces {files} --id q14 {questions}") == 0
    out = capsys.readouterr().out
    trace = read_traces(run / "reason" / "implicit.jsonl")[14]
    [_, ranked, _] = trace.steps
    assert "How many pears has Ann on day 14?" in out and "gold answer: 14" in out
    assert "both wrote the same steps" in out or "the two part at step" in out
    assert "rationale, in a context, cut off: Ann picks 14 pears." in out
    assert all(text in out for text in ranked.candidates)
    above = margins(ranked)
    assert above is not None and f"{above[ranked.choice]:+.3f}" in out


def test_what_a_model_writes_commands_no_terminal(finished: tuple[Path, dict]):
    run, _ = finished
    out = io.StringIO()
    trace = read_traces(run / "reason" / "implicit.jsonl")[3]
    for piece in question_view({"[bold]run": trace}):
        Console(file=out, width=200).print(piece)
    text = out.getvalue()
    assert "\x1b" not in text and "␛[31m red ␀" in text and "\u202e" not in text
    assert "[bold]run" in text


def test_a_question_that_is_not_there_is_one_line(finished: tuple[Path, dict], capsys):
    run, _ = finished
    assert rationalyst(f"show --traces {run / 'reason' / 'judge.jsonl'} --id nobody") == 1
    assert "judge.jsonl: has no trace of question 'nobody'" in capsys.readouterr().err


def test_a_terminal_grades_no_trace_of_a_question_that_was_changed(
    finished: tuple[Path, dict], tmp_path: Path, capsys
):
    run, _ = finished
    changed = tmp_path / "changed.jsonl"
    changed.write_text((run / "data" / "test.jsonl").read_text().replace("on day 9?", "on day nine?"))
    traces = run / "reason" / "implicit.jsonl"
    assert rationalyst(f"show --traces {traces} --id q09 --task gsm8k --questions {changed}") == 1
    told = capsys.readouterr()
    assert "question 'q09' had another text when it was solved" in told.err and not told.out


@pytest.mark.parametrize(
    ("mend", "told"),
    [
        ({"choice": 17}, "choice 17 of 3 candidates"),
        ({"scores": [0.5]}, "1 scores of 3 candidates"),
    ],
)
def test_a_step_that_contradicts_itself_is_named(finished: tuple[Path, dict], tmp_path: Path, mend, told):
    run, _ = finished
    rows = [json.loads(line) for line in (run / "reason" / "implicit.jsonl").read_text().splitlines()]
    rows[1]["steps"][1] |= mend
    file = tmp_path / "broken.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"broken\.jsonl:2: not a trace .*{told}"):
        read_traces(file)
