"""A finished experiment without a model: questions, traces and mined rationales, all of them made up."""

import base64
import gzip
import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.files.settings import digest
from rationalyst_jax.files.whole import write_json
from rationalyst_jax.mine.likelihood_filter import FilteredTriple
from rationalyst_jax.mine.store import Provenance, write_filtered
from rationalyst_jax.pipeline.evaluate import evaluate
from rationalyst_jax.reason.traces import Gains, Sample, Step, Trace, mean_ledger
from rationalyst_jax.roles.usage import Usage
from rationalyst_jax.tasks.benchmarks import task_named

QUESTIONS = 60
RUNS = {"random": "random", "likelihood": "likelihood", "implicit": "implicit", "judge": "judge"}
# What models may write: none of it may do anything on a page but be read.
HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'></script>",
    "long " + "0123456789" * 1000,
    "שלום עולם \u202e‮ טקסט מימין לשמאל",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 𝒳 &lt;b&gt; &amp; \x1b[31m red \x00",
)

# What was written about documents that have no usable rationale.
WITHOUT = (
    ("too_long", {"output": ""}),
    ("stop", {"output": f"Text 21. {HOSTILE[0]}" * 9}),
    ("stop", {"output": "Text <BOT>Text<EOT>22."}),
    ("stop", {"places": []}),
)


def unpacked(page: Path) -> dict[str, Any]:
    """The parts of a page, read without a browser."""
    parts = re.findall(r'<script type="text/plain" id="part-([\w-]+)">([\w+/=]*)</script>', page.read_text())
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in parts}


def write_run(run: Path) -> dict:
    """Writes the folder and gives its summary."""
    task = task_named("gsm8k")
    rows = [
        {"id": f"q{i:02}", "question": _question(i), "answer": f"One thinks.\n#### {i}"}
        for i in range(QUESTIONS)
    ]
    write_rows(run / "data" / "test.jsonl", rows)
    questions = task.read(run / "data" / "test.jsonl")
    ledgers = {}
    for name, strategy in RUNS.items():
        traces = [_trace(i, question.id, question.asked, strategy) for i, question in enumerate(questions)]
        write_rows(run / "reason" / f"{name}.jsonl", map(asdict, traces))
        ledgers[name] = mean_ledger(traces)
    files = {name: [run / "reason" / f"{name}.jsonl"] for name in RUNS}
    results = {}
    baselines = ("random", "likelihood")
    for name, found in evaluate(task, run / "data" / "test.jsonl", files, baselines).items():
        results[name] = {**asdict(found.accuracy), "ledger": ledgers[name]}
        for other in baselines:
            results[name][f"vs_{other}"] = None if other == name else asdict(found.versus[other])
    triples = _triples()
    write_filtered(run / "mine" / "filtered.parquet", triples, Provenance("annotator", "world-1", {}))
    annotations = [
        {"id": f"d{n:02}", "source": "world", "input": f"Text {n}.", "finish": finish} | written
        for n, (finish, written) in enumerate(WITHOUT, start=20)
    ]
    annotations += [{"id": "d03", "source": "world", "input": "Used.", "output": "Used.", "finish": "stop"}]
    write_rows(run / "mine" / "annotations.jsonl", annotations)
    reasons = Counter(triple.reason for triple in triples)
    kept = reasons["gain"]
    mined = {"documents": 25, "annotated": 22, "faithful": 21, "triples": len(triples), "kept": kept}
    summary = {
        "seed": 0,
        "strategies": results,
        "mining": [{**mined, "reasons": dict(reasons), "gains": {}, "generated": 1, "flops": 1}],
        "training": {"rationalyst": {"rationales": kept, "steps": 3, "passes": 1.0, "loss": 0.5}},
        "ablations": {},
        "baseline": None,
        "curves": {"n": {"label": "N", "x": [1, 3], "lines": {"guided": ["random", "implicit"]}}},
        "seconds": {"data": 0.1},
    }
    losses = [{"step": i, "loss": 1 / i} | ({"val_loss": 1.0} if i == 3 else {}) for i in (1, 2, 3)]
    write_rows(run / "train" / "rationalyst" / "metrics.jsonl", losses)
    runs = {
        name: {
            "strategy": strategy,
            "questions": "test",
            "rationalyst": "rationalyst" if strategy == "implicit" else None,
        }
        for name, strategy in RUNS.items()
    }
    config = {
        "task": "gsm8k",
        "world": {"documents": 25, "questions": QUESTIONS},
        "train": {"batch_examples": 4},
        "rationalysts": {"rationalyst": {"keep": "gain", "train": True, "rounds": None}},
        "strategies": runs,
        "ablations": {},
    }
    write_json(run / "summary.json", summary)
    write_json(run / "experiment.config.json", config)
    write_json(run / "versions.json", {"rationalyst_jax": "0.1.0"})
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def _question(number: int) -> str:
    return HOSTILE[number] if number < len(HOSTILE) else f"How many pears has Ann on day {number}?"


def _trace(number: int, name: str, asked: str, strategy: str) -> Trace:
    """Every third question parts at its second step, and there some are turned right, others wrong."""
    random = Random(f"{number} {strategy if number % 3 == 0 else ''}")
    right = random.random() < (0.4 if strategy == "likelihood" else 0.7)
    answer = None if number % 17 == 5 else str(number if right else number + 1)
    guided = strategy == "implicit"
    texts = (f"Ann picks {number} pears.", f"Ann buys {number} pears.", "Ann has none.")
    if number < len(HOSTILE):
        texts = (HOSTILE[number], "Ann has none.", "Ann has none.")
    choice = random.randrange(3)
    taken = 0 if number < len(HOSTILE) else choice
    others = tuple(-0.5 - random.random() for _ in texts)
    scores = tuple(-0.1 if i == taken else other for i, other in enumerate(others))
    rationale = ("" if number % 10 == 7 else texts[0]) if guided else None
    notes = tuple(f"rating {i} {HOSTILE[0]}" for i in range(3)) if strategy == "judge" else None
    steps = [
        Step("Let us see.", "stop", ("Let us see.",) * 3, 0, None, "see" if guided else None, "stop"),
        Step(
            texts[taken],
            "length" if number % 11 == 3 else "stop",
            texts,
            taken,
            None if strategy == "random" else scores,
            rationale,
            "length" if guided and number % 10 == 4 else "stop" if guided else None,
            guided and bool(rationale),
            notes,
            "\n",
            *_recorded(texts) if guided and rationale else (None, None),
        ),
    ]
    if answer is not None:
        last = f"The answer is {answer}."
        steps.append(Step(last, "end", (last,), 0))
    finish = "max_steps" if answer is None else "answer"
    samples = (Sample((texts[0], "The answer is 1."), "1", "answer"),) if strategy == "random" else ()
    usage = {"agent": Usage(3, 90, 60, 200, 0, 10**9 * (1 + len(strategy)))}
    return Trace(name, strategy, answer, finish, tuple(steps), samples, usage, 1.5, digest([asked.encode()]))


def _recorded(texts: tuple[str, ...]) -> tuple:
    """Scores without the rationale, of which the first is the best, and gains: of each first token +1.5 nats,
    of the others −0.25."""
    without = (-0.2, -0.4, -0.6)
    gains = []
    for text in texts:
        tokens = tuple(re.findall(r"\s*\S+|\s+", text))
        under = (-0.5, *(-0.75 for _ in tokens[1:]))
        gains.append(Gains(tokens, under, (-2.0, *(-0.5 for _ in tokens[1:]))))
    return without, tuple(gains)


def _triples() -> list[FilteredTriple]:
    triples = []
    for document in range(20):
        texts = [f"{HOSTILE[document % 4]} 𝒳 one. ", "Two. ", "Three."]
        start = 0
        for index, following in enumerate(texts[1:]):
            preceding = "".join(texts[: index + 1])
            start = len(preceding)
            gain = 0.3 * index - 0.1 * (document % 5) if document else None
            reason = "too_long" if gain is None else "gain" if gain >= 0.1 else "below_tau"
            triples.append(
                FilteredTriple(
                    document_id=f"d{document:02}",
                    source="world",
                    index=index,
                    start=start,
                    end=start + len(following),
                    preceding=preceding,
                    rationale=f"thought {index} {HOSTILE[0]}",
                    following=following,
                    logprob_without=None if gain is None else -2.0,
                    logprob_with=None if gain is None else gain - 2.0,
                    gain=gain,
                    tau=0.1,
                    kept=reason == "gain",
                    reason=reason,
                )
            )
    return triples
