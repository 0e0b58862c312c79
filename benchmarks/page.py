"""How large the page of a long run is, and how soon and with how much memory a browser shows it.

    pip install playwright            # and a Chromium, as Debian's
    python benchmarks/page.py [--questions 1319] [--steps 15] [--candidates 3] [--gains]

The traces are made up: that many questions, steps and candidates of random words, as long as those of GSM8K.
"""

import argparse
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from random import Random

from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.pipeline.report import report_traces
from rationalyst_jax.reason.traces import Gains, Step, Trace
from rationalyst_jax.roles.usage import Usage
from rationalyst_jax.tasks.benchmarks import task_named

WORDS = 6_000
STEP_WORDS = 22
RATIONALE_WORDS = 18
QUESTION_WORDS = 45
# A machine of tests has no display, and may have no sandbox; nothing here may reach for a network.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-precise-memory-info")


def vocabulary(random: Random) -> Callable[[int], str]:
    """What gives so many words; few of them are frequent, as in any language."""
    letters = "etaoinshrdlcumwfgypb"
    words = ["".join(random.choices(letters, k=random.randint(1, 9))) for _ in range(WORDS)]
    weights = [1 / rank for rank in range(1, WORDS + 1)]
    return lambda count: " ".join(random.choices(words, weights, k=count))


def write_traces(
    folder: Path, questions: int, steps: int, candidates: int, gains: bool = False
) -> tuple[Path, Path]:
    """Writes questions and a run of `implicit` on them, with the gains of all tokens or without; gives both
    files."""
    random = Random(0)
    say = vocabulary(random)
    rows = [
        {"id": f"q{n}", "question": say(QUESTION_WORDS), "answer": f"{say(30)}\n#### {random.randint(0, 99)}"}
        for n in range(questions)
    ]
    write_rows(folder / "questions.jsonl", rows)
    usage = {
        role: Usage(steps, 900, 2_000, 4_000, 300, 10**12) for role in ("agent", "rationalyst", "scorer")
    }

    def gains_of(text: str) -> Gains:
        tokens = tuple(re.findall(r"\s?\S{1,5}", text + "\n"))
        logprobs = (tuple(round(-random.expovariate(2), 4) for _ in tokens) for _ in range(2))
        return Gains(tokens, *logprobs)

    def trace(question: str) -> Trace:
        answer = str(random.randint(0, 99))

        def step(last: bool) -> Step:
            texts = tuple(f"The answer is {answer}." if last else say(STEP_WORDS) for _ in range(candidates))
            scores = tuple(-random.random() for _ in texts)
            choice = scores.index(max(scores))
            return Step(
                texts[choice],
                "stop",
                texts,
                choice,
                scores,
                say(RATIONALE_WORDS),
                "stop",
                True,
                scores_without=scores if gains else None,
                gains=tuple(map(gains_of, texts)) if gains else None,
            )

        taken = tuple(step(number == steps - 1) for number in range(steps))
        return Trace(question, "implicit", answer, "answer", taken, (), usage, random.random())

    write_rows(folder / "implicit.jsonl", (asdict(trace(row["id"])) for row in rows))
    return folder / "questions.jsonl", folder / "implicit.jsonl"


def look(page: Path) -> dict[str, float]:
    """Opens a page in Chromium: milliseconds until it is ready, and MB of the script's heap then, and again
    after a question was looked at and every text searched."""
    sync_playwright = import_module("playwright.sync_api").sync_playwright  # not among our dependencies
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=browser, args=FLAGS, offline=True
        )
        tab = context.new_page()
        seen = {}

        def heap() -> float:
            return tab.evaluate("performance.memory.usedJSHeapSize") / 1e6

        tab.goto(page.as_uri())
        tab.wait_for_selector("body[data-ready]")
        seen["overview, ms to ready"] = float(tab.get_attribute("body", "data-ready") or "nan")
        seen["overview, MB of heap"] = heap()
        tab.goto("about:blank")
        tab.goto(page.as_uri() + "#run=implicit&q=q7")
        tab.wait_for_selector("body[data-ready]")
        seen["a question, ms to ready"] = float(tab.get_attribute("body", "data-ready") or "nan")
        seen["a question, MB of heap"] = heap()
        begun = time.perf_counter()
        before = tab.get_by_role("status").inner_text()
        tab.get_by_label("search in texts").fill("zzzz")
        tab.get_by_label("search in texts").press("Enter")
        tab.wait_for_function("old => document.querySelector('[role=status]')?.innerText !== old", arg=before)
        seen["search of every text, ms"] = 1000 * (time.perf_counter() - begun)
        seen["after that, MB of heap"] = heap()
        context.close()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=1319)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--gains", action="store_true", help="as --record_gains leaves them")
    sizes = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions, traces = write_traces(folder, **sizes)
        print(f"{traces.stat().st_size / 1e6:.1f} MB of traces: {sizes}")
        begun = time.perf_counter()
        begun_cpu = time.process_time()
        size = report_traces(task_named("gsm8k"), questions, {"implicit": [traces]}, folder / "page.html")
        took = f"{time.perf_counter() - begun:.1f} s, {time.process_time() - begun_cpu:.1f} s of a CPU"
        print(f"{size / 1e6:.1f} MB of page, written in {took}")
        for what, value in look(folder / "page.html").items():
            print(f"{what}: {value:.0f}")


if __name__ == "__main__":
    main()
