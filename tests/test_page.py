"""The page of a run in a real browser: Chromium, driven by playwright, without a network.

Where axe-core (npm) lies in a folder of NODE_PATH it looks for what keeps people from reading the page.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from finished_run import HOSTILE, QUESTIONS, unpacked

from rationalyst_jax.evaluate.grade import grade
from rationalyst_jax.mine.store import read_filtered
from rationalyst_jax.pipeline.report import report_traces
from rationalyst_jax.reason.traces import read_traces
from rationalyst_jax.report.html import MAIN, packed, write_page
from rationalyst_jax.report.style import percent
from rationalyst_jax.report.trace_view import first_parting, smallest_margin
from rationalyst_jax.tasks.benchmarks import task_named

Open = Callable[..., Any]
IMPLICIT = "#run=implicit&vs=likelihood"


def page_with(finished: tuple[Path, dict], out: Path, **changes: Any) -> Path:
    """The page, with something else in its main part."""
    parts = unpacked(finished[0] / "report.html")
    parts[MAIN] |= changes
    write_page("changed", {name: packed(value) for name, value in parts.items()}, out)
    return out


def wait_for_status(page: Any, begins: str) -> None:
    page.wait_for_function(
        "it => document.querySelector('[role=status]')?.innerText.startsWith(it)", arg=begins
    )


def choose(page: Any, label: str, value: str) -> None:
    page.get_by_role("combobox", name=label, exact=True).select_option(value)


def test_a_page_opens_with_the_figures_of_its_run(opened: Open, finished: tuple[Path, dict]):
    page = opened()
    assert page.get_by_role("link", name="Overview").get_attribute("aria-current") == "page"
    for name, result in finished[1]["strategies"].items():
        named = page.get_by_role("cell", name=name, exact=True)
        row = page.locator("table", has_text="strategies").locator("tbody tr", has=named)
        assert percent(result["accuracy"], result["low"], result["high"]) in row.inner_text()
    assert page.locator("figure > svg").count() == 6  # two of costs, a curve, a funnel, gains, a loss
    assert page.locator("svg >> text=τ = 0.1").count() == 1


def test_filters_leave_as_many_questions_as_python_counts(opened: Open, finished: tuple[Path, dict]):
    run, _ = finished
    task = task_named("gsm8k")
    questions = task.read(run / "data" / "test.jsonl")
    files = {name: [run / "reason" / f"{name}.jsonl"] for name in ("implicit", "likelihood")}
    verdicts = {
        name: [g.verdict for g in grade(path, questions, task).strict] for name, path in files.items()
    }
    pairs = list(zip(verdicts["implicit"], verdicts["likelihood"], strict=True))
    traces = read_traces(files["implicit"][0])
    small = [m for trace in traces if (m := smallest_margin(trace)) is not None and m < 0.6]
    wanted = [
        ("graded", "wrong", verdicts["implicit"].count("wrong")),
        ("graded", "unanswered", verdicts["implicit"].count("unanswered")),
        ("flipped", "right", sum(a == "right" != b for a, b in pairs)),
        ("flipped", "wrong", sum(a != "right" == b for a, b in pairs)),
        ("ended by", "max_steps", sum(trace.finish == "max_steps" for trace in traces)),
        ("where", "step_cut", sum(any(s.finish == "length" for s in trace.steps) for trace in traces)),
        ("where", "rationale_empty", sum(any(s.rationale == "" for s in trace.steps) for trace in traces)),
        ("where", "rationale_cut", sum(any(s.rationale_finish == "length" for s in t.steps) for t in traces)),
    ]
    page = opened(IMPLICIT)
    wait_for_status(page, f"{QUESTIONS} questions of {QUESTIONS}")
    for label, value, expected in wanted:
        assert 0 < expected < QUESTIONS
        choose(page, label, value)
        wait_for_status(page, f"{expected} question")
        choose(page, label, "")
    page.get_by_label("margin below").fill("0.6")
    page.get_by_label("margin below").press("Enter")
    assert 0 < len(small) < QUESTIONS
    wait_for_status(page, f"{len(small)} question")
    page.get_by_label("margin below").fill("")
    page.get_by_label("margin below").press("Enter")
    texts = ["\n".join([q.asked, *(s.text for s in t.steps)]) for q, t in zip(questions, traces, strict=True)]
    page.get_by_label("search in texts").fill("BUYS 14 pears")
    page.get_by_label("search in texts").press("Enter")
    found = sum("buys" in text.lower() and "14" in text for text in texts)
    wait_for_status(page, f"{found} question")


def test_a_question_that_guidance_turned_right_is_reached_by_clicks(
    opened: Open, finished: tuple[Path, dict]
):
    page = opened()
    page.get_by_role("link", name="Questions").click()
    choose(page, "flipped", "right")
    page.wait_for_function(f"document.querySelectorAll('.row').length < {QUESTIONS // 2}")
    page.locator(".row").first.click()
    page.wait_for_selector("article ol.steps")
    sides = [page.get_by_role("region", name=name, exact=True) for name in ("implicit", "likelihood")]
    assert sides[0].locator(".badge").first.inner_text() == "right"
    assert sides[1].locator(".badge").first.inner_text() != "right"
    run, _ = finished
    name = page.locator("article h3").first.inner_text()
    texts = [
        next(trace.steps for trace in read_traces(run / "reason" / f"{of}.jsonl") if trace.id == name)
        for of in ("implicit", "likelihood")
    ]
    parting = first_parting(*texts)
    assert parting is not None
    assert page.get_by_text(f"The two part at step {parting + 1}.").is_visible()
    assert page.get_by_text("here they part").count() == 2


def test_keys_go_from_question_to_question(opened: Open):
    page = opened("#view=questions&run=implicit")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("How many pears")
    page.keyboard.press("Enter")
    wait_for_status(page, "56 questions")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "listbox"
    for key, expected in (("ArrowDown", "q04"), ("j", "q05"), ("j", "q06"), ("k", "q05"), ("End", "q59")):
        page.keyboard.press(key)
        page.wait_for_function("id => document.querySelector('article h3')?.innerText === id", arg=expected)
        chosen = page.locator(".row[aria-selected=true]")
        assert expected in chosen.inner_text()
        assert page.get_by_role("listbox").get_attribute("aria-activedescendant") == chosen.get_attribute(
            "id"
        )
    page.go_back()
    page.wait_for_function("document.querySelector('article h3')?.innerText === 'q05'")


def test_a_link_leads_to_a_question(opened: Open, finished: tuple[Path, dict]):
    page = opened("#run=judge&q=q20&vs=none")
    assert page.locator("article h3").all_inner_texts() == ["q20", "judge"]
    trace = read_traces(finished[0] / "reason" / "judge.jsonl")[20]
    assert page.locator("article mark").inner_text() == trace.answer
    assert "rating 2" in page.locator("article table").first.inner_text()
    page = opened("#run=implicit&q=nobody")
    assert page.get_by_text("There is no question nobody").is_visible()


@pytest.mark.parametrize("name", ["toString", "__proto__", "nothing"])
def test_a_link_to_an_unknown_view_leads_to_the_overview(opened: Open, name: str):
    page = opened(f"#view={name}")
    assert page.get_by_role("link", name="Overview").get_attribute("aria-current") == "page"
    assert page.get_by_role("heading", name="What came out").is_visible()


@pytest.mark.parametrize("link", ["#view=mined", "#view=questions", "#q=q01", "#run=likelihood&q=q01"])
def test_a_link_to_what_a_run_has_not_leads_to_the_overview(
    opened: Open, finished: tuple[Path, dict], tmp_path: Path, link: str
):
    page = opened(link, page_with(finished, tmp_path / "bare.html", sets=[], mining=[]))
    assert page.locator("nav a").all_inner_texts() == ["Overview"]
    assert page.get_by_role("heading", name="What came out").is_visible()


@pytest.mark.parametrize(
    "filters", ["verdict=good&flip=up", "finish=toString", "flag=__proto__&margin=small"]
)
def test_an_unknown_choice_of_questions_leaves_all(opened: Open, filters: str):
    wait_for_status(opened(f"{IMPLICIT}&{filters}"), f"{QUESTIONS} questions of {QUESTIONS}")


@pytest.mark.parametrize("name", ["__proto__", "nothing"])
def test_an_unknown_choice_of_documents_leaves_all(opened: Open, name: str):
    wait_for_status(opened(f"#view=mined&kept={name}"), "24 documents of 24")


SAMPLES = [("abc", 0), ("-1", 0), ("0.9", 0), ("1", 1), ("1e99", 1)]


@pytest.mark.parametrize(("asked", "shown"), SAMPLES)
def test_a_link_to_a_sample_that_is_not_there_leads_to_one_that_is(
    opened: Open, finished: tuple[Path, dict], tmp_path: Path, asked: str, shown: int
):
    sets = unpacked(finished[0] / "report.html")[MAIN]["sets"]
    run = next(run for run in sets[0]["runs"] if run["name"] == "likelihood")
    run["samples"] = 2  # two samples of each of the first half of the questions
    run["rows"] = [[n // 2, n % 2, *row[2:]] for n, row in enumerate(run["rows"])]
    file = page_with(finished, tmp_path / "samples.html", sets=sets)
    page = opened(f"#run=likelihood&vs=none&sample={asked}&q=q07", file)
    assert page.locator("article h3").all_inner_texts() == ["q07", f"likelihood, sample {shown}"]
    assert page.locator("article ol.steps li").count() > 0
    assert f"q07, sample {shown}" in page.locator(".row[aria-selected=true]").inner_text()


# Runs that lie close together, as rounds of one method do, and the number of FLOPs that they are spread over.
SPREADS = [1.0, 2.0, 6.0, 1e3, 1e9]


def crowd(spread: float, runs: int = 14) -> list[dict]:
    points = []
    for i in range(runs):
        mean = 0.5 + 0.02 * (i % 4)
        interval = [mean, mean - 0.04, mean + 0.04]
        flops = 2.1e8 * spread ** (i // 4 / (runs // 4))
        points.append({"name": f"run {i}", "interval": interval, "flops": flops, "tokens": 300 + i})
    return [{"title": "test", "points": points}]


# Where things are on the screen; of a text, from the baseline to the top of its figures.
BOXES = """all => all.map(it => {
  const {x, y, width, height} = it.getBoundingClientRect();
  if (it.tagName !== "text") return {x, y, width, height};
  const {top} = it.ownerSVGElement.getBoundingClientRect();
  const scale = it.getScreenCTM().a;
  const high = 8 * scale;
  return {x, y: top + it.getAttribute("y") * scale - high, width, height: high};
})"""


def overlap(one: dict, other: dict) -> bool:
    return all(
        one[at] + one[size] > other[at] and other[at] + other[size] > one[at]
        for at, size in (("x", "width"), ("y", "height"))
    )


@pytest.mark.parametrize("spread", SPREADS)
def test_a_plot_of_costs_can_be_read(
    opened: Open, finished: tuple[Path, dict], tmp_path: Path, spread: float
):
    costs = crowd(spread)
    page = opened("", page_with(finished, tmp_path / "costs.html", costs=costs))
    plot = "figure:nth-of-type(1)"
    ticks = page.locator(f"{plot} .across").all_text_contents()
    assert len(ticks) >= 3
    assert all(re.fullmatch(r"[\d.]{1,4}[MGTPE]", tick) for tick in ticks)
    powers = {"M": "M = 10⁶", "G": "G = 10⁹", "T": "T = 10¹²", "P": "P = 10¹⁵", "E": "E = 10¹⁸"}
    used = [said for prefix, said in powers.items() if any(tick.endswith(prefix) for tick in ticks)]
    assert page.locator(f"{plot} > svg").get_by_text(f"FLOPs of a question, {', '.join(used)}").count() == 1
    for one, other in pairwise(page.locator(f"{plot} .across").evaluate_all(BOXES)):
        assert not overlap(one, other)
    numbers = page.locator(f"{plot} .label").all_text_contents()
    assert numbers == [str(i + 1) for i in range(len(costs[0]["points"]))]
    labels = page.locator(f"{plot} .label").evaluate_all(BOXES)
    points = page.locator(f"{plot} > svg .marker").evaluate_all(BOXES)
    assert len(points) == len(labels)
    assert not any(overlap(one, other) for one, other in combinations(labels, 2))
    assert not any(overlap(label, point) for label in labels for point in points)
    keys = page.locator(f"{plot} .legend .marker")
    looks = {(key.get_attribute("d"), key.evaluate("it => getComputedStyle(it).fill")) for key in keys.all()}
    assert len(looks) == len(costs[0]["points"])


def test_what_is_kept_has_one_colour_in_all_plots(opened: Open):
    page = opened()
    fill = "it => getComputedStyle(it).fill"
    funnel = page.locator("figure", has_text="from documents to kept rationales").locator("g")
    gains = page.locator("figure", has_text="gains, mining")
    for bar, name in (("kept: gain", "kept"), ("dropped: below tau", "not kept")):
        painted = funnel.filter(has_text=bar).locator("rect").evaluate(fill)
        key = gains.locator(".legend li").filter(has_text=re.compile(f"^{name}$"))
        assert key.locator(".marker").evaluate(fill) == painted
        assert painted in gains.locator("rect").evaluate_all(f"all => all.map({fill})")
    assert "The outermost bins also hold everything beyond them." in gains.inner_text()
    tips = gains.locator("g title").all_text_contents()
    assert tips[0].startswith("below ") and " and more: " in tips[-1]


def test_tokens_have_the_colour_of_their_gain_and_say_it(opened: Open):
    page = opened("#run=implicit&q=q14")
    tokens = page.locator("article .token")
    said = "+1.500 nats: −0.500 with the rationale, −2.000 without"
    assert tokens.first.get_attribute("title") == said
    colours = [tokens.nth(i).evaluate("one => getComputedStyle(one).backgroundColor") for i in range(3)]
    assert colours[0] != colours[1] == colours[2] != "rgba(0, 0, 0, 0)"
    assert "likelihood's" in page.locator("article table tbody tr").first.inner_text()


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_what_models_write_is_shown_as_text_and_does_nothing(opened: Open, number: int):
    page = opened(f"#run=implicit&q=q{number:02}&vs=judge")
    shown = page.locator("article .question").evaluate("element => element.textContent")
    assert shown == HOSTILE[number]
    assert (
        page.locator("article .taken .text").first.evaluate("element => element.textContent")
        == HOSTILE[number]
    )
    assert page.evaluate("window.pwned") is None and page.locator("article img, article script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_list_draws_what_is_on_the_screen(opened: Open):
    page = opened(IMPLICIT, viewport={"width": 1000, "height": 400})
    assert 0 < page.locator(".row").count() < 30
    page.get_by_role("listbox").evaluate("element => element.scrollTo(0, 1e6)")
    page.wait_for_function(f"document.querySelector('[aria-posinset=\"{QUESTIONS}\"]')")
    assert page.locator(".row").count() < 30


def test_a_document_shows_each_rationale_where_it_was_found(opened: Open, finished: tuple[Path, dict]):
    page = opened()
    page.get_by_role("link", name="Mined rationales").click()
    wait_for_status(page, "24 documents of 24")
    choose(page, "rationales kept", "without")
    wait_for_status(page, "4 documents of 24")
    page.locator(".row").nth(2).click()
    page.wait_for_selector("article h3")
    assert "No usable rationale: exact; rationales: 1 copied." in page.locator("article").inner_text()
    page.keyboard.press("Escape")
    choose(page, "rationales kept", "none")
    kept = Counter(t.document_id for t in read_filtered(finished[0] / "mine" / "filtered.parquet") if t.kept)
    wait_for_status(page, f"{20 - len(kept)} documents of 24")
    choose(page, "rationales kept", "")
    wait_for_status(page, "24 documents")
    page.get_by_role("listbox").evaluate("element => element.scrollTo(0, 0)")
    page.locator("[aria-posinset='2']").click()
    page.wait_for_selector("article .rationale")
    pieces = page.locator("article > *").all_inner_texts()[3:]
    assert (
        pieces[0].strip() == f"{HOSTILE[1]} 𝒳 one." and pieces[2].strip() == "Two." and pieces[4] == "Three."
    )
    assert "not kept" in pieces[1] and "below tau; gain −0.100 nats" in pieces[1]
    assert "kept" in pieces[3] and "gain; gain +0.200 nats" in pieces[3]


PLACES = ("", IMPLICIT, f"{IMPLICIT}&q=q14", "#run=judge&q=q01", "#view=mined&doc=d01")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_people_from_reading(opened: Open, scheme: str):
    folders = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
    scripts = [file for folder in folders if (file := folder / "axe-core" / "axe.min.js").is_file()]
    if not scripts:
        pytest.skip("no axe-core in a folder of NODE_PATH: npm install axe-core")
    for place in PLACES:
        # The page's own policy would not let axe in.
        page = opened(place, color_scheme=scheme, bypass_csp=True)
        page.add_script_tag(path=scripts[0])
        found = page.evaluate(
            "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice']})"
        )
        assert not [(one["id"], one["nodes"][0]["html"][:200]) for one in found["violations"]], place


@pytest.mark.parametrize("place", [*PLACES, "#run=implicit&q=nobody", "#view=mined&doc=nothing"])
def test_a_page_fits_a_phone(opened: Open, place: str):
    page = opened(place, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    if "q=" in place or "doc=" in place:
        page.get_by_role("link", name="back to the list").click()
        page.wait_for_selector(".list")
        assert page.get_by_role("listbox").is_visible()


@pytest.mark.slow  # half a minute; benchmarks/page.py says how soon it is ready, and with how much memory
def test_a_page_of_many_long_traces_can_be_filtered_and_read(opened: Open, tmp_path: Path):
    benchmark = run_path(str(Path(__file__).parents[1] / "benchmarks" / "page.py"))
    count = 1319
    questions, traces = benchmark["write_traces"](tmp_path, count, steps=15, candidates=3, gains=True)
    task = task_named("gsm8k")
    size = report_traces(task, questions, {"implicit": [traces]}, tmp_path / "page.html")
    assert size < 20e6
    page = opened("#view=questions", tmp_path / "page.html")
    wait_for_status(page, f"{count:,} questions of {count:,}")
    right = [g.verdict for g in grade([traces], task.read(questions), task).strict].count("right")
    assert 0 < right < count
    choose(page, "graded", "right")
    wait_for_status(page, f"{right} questions of {count:,}")
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    page.wait_for_selector("article ol.steps")
    assert page.locator("article ol.steps > li").count() == 15
    assert page.locator(".row").count() < 60
    page.get_by_role("link", name="Overview").click()
    assert page.locator(".note").first.inner_text()  # the gains of tokens were left out
