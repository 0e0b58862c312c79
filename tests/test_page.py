"""The page of a run in a real browser: Chromium, driven by playwright, without a network.

Where axe-core (npm) lies in a folder of NODE_PATH it looks for what keeps people from reading the page.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finished_run import HOSTILE, QUESTIONS, write_run

from rationalyst_jax.evaluate.grade import grade
from rationalyst_jax.mine.store import read_filtered
from rationalyst_jax.pipeline.report import report_run
from rationalyst_jax.reason.traces import read_traces
from rationalyst_jax.report.style import percent
from rationalyst_jax.report.trace_view import first_parting, smallest_margin
from rationalyst_jax.tasks.benchmarks import task_named

playwright = pytest.importorskip(
    "playwright.sync_api", reason="pip install playwright, for pages in a browser"
)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path")

Open = Callable[..., Any]
IMPLICIT = "#run=implicit&vs=likelihood"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    run = tmp_path_factory.mktemp("finished")
    summary = write_run(run)
    report_run(run, run / "report.html")
    return run, summary


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, finished: tuple[Path, dict]) -> Iterator[Open]:
    """Opens the page at a link; afterwards nothing may have been asked for but the file, or gone wrong."""
    address = (finished[0] / "report.html").as_uri()
    contexts = []
    errors: list[str] = []
    requests: list[str] = []

    def open(link: str = "", **how: Any) -> Any:
        contexts.append(browser.new_context(offline=True, **how))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("request", lambda request: requests.append(request.url.partition("#")[0]))
        page.goto(address + link)
        page.wait_for_selector("body[data-ready]")
        return page

    yield open
    for context in contexts:
        context.close()
    assert not errors
    assert set(requests) == ({address} if contexts else set())


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
    assert page.locator("svg").count() == 6  # two of costs, a curve, a funnel, gains, a loss
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
    page.locator(".row").nth(1).click()
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


@pytest.mark.parametrize("place", PLACES)
def test_a_page_fits_a_phone(opened: Open, place: str):
    page = opened(place, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    if "q=" in place:
        page.get_by_role("link", name="back to the list").click()
        page.wait_for_selector(".list")
        assert page.get_by_role("listbox").is_visible()
