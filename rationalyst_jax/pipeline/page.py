"""What the page of a run shows: tables, plots, documents, questions with traces; gathered, then packed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from rationalyst_jax.evaluate.grade import Graded, grade
from rationalyst_jax.files.rows import read_rows
from rationalyst_jax.files.settings import digest
from rationalyst_jax.mine.documents import Annotated, Annotation, read_annotations
from rationalyst_jax.mine.likelihood_filter import FilteredTriple
from rationalyst_jax.mine.store import read_filtered
from rationalyst_jax.mine.triples import cut
from rationalyst_jax.reason.traces import Trace, read_traces
from rationalyst_jax.report.html import MAIN, packed, table_data, write_page
from rationalyst_jax.report.trace_view import (
    FLAGS,
    answer_span,
    flags_of,
    likelihood_choices,
    margins,
    smallest_margin,
)
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Task

MOST_BYTES = 20_000_000  # of all traces on a page, packed
MOST_DOCUMENTS = 2_000  # of a round of mining on a page
_BINS = 60
_DIGITS = 4  # of scores, margins and gains on a page


@dataclass(frozen=True)
class Solved:
    """The traces of one run on a set of questions: of each file those of all questions, and their grades."""

    samples: Sequence[Mapping[str, Trace]]
    graded: Graded

    @property
    def traces(self) -> list[Trace]:
        return [trace for sample in self.samples for trace in sample.values()]


class Page:
    """Grows until it is written. `main` is what a page needs at once; what lists lead to is in parts."""

    def __init__(self, title: str):
        self.title = title
        self.traces: dict[str, list[Any]] = {}
        self.others: dict[str, Any] = {}
        self.main: dict[str, Any] = {
            "title": title,
            "flags": dict(FLAGS),
            "notes": [],
            "settings": [],
            "versions": {},
            "seconds": {},
            **{
                key: []
                for key in ("tables", "costs", "funnels", "gains", "losses", "curves", "sets", "mining")
            },
        }

    def write(self, out: Path) -> int:
        parts = {name: packed(rows) for name, rows in self.traces.items()}
        size = _size(parts)
        if size > MOST_BYTES and self._leave_gains_out():
            self.main["notes"].append(
                f"With the gains of all tokens the traces would take {size / 1e6:.0f} MB, more than "
                f"{MOST_BYTES / 1e6:.0f}: the gains are left out."
            )
            parts = {name: packed(rows) for name, rows in self.traces.items()}
            size = _size(parts)
        if size > MOST_BYTES:
            share = 0.95 * MOST_BYTES / size
            shown = {name: rows[: int(share * len(rows))] for name, rows in self.traces.items()}
            parts = {name: packed(rows) for name, rows in shown.items()}
            self.main["notes"].append(
                f"The steps of all questions would take {size / 1e6:.0f} MB, more than "
                f"{MOST_BYTES / 1e6:.0f}: only those of the first {share:.0%} of each run's questions are on "
                "this page. Lists and counts are complete."
            )
        parts |= {name: packed(value) for name, value in self.others.items()}
        return write_page(self.title, {MAIN: packed(self.main), **parts}, out)

    def _leave_gains_out(self) -> bool:
        """Whether there were any."""
        steps = [step for rows in self.traces.values() for trace in rows for step in trace["steps"]]
        had = any(step["gains"] for step in steps)
        for step in steps:
            step["gains"] = None
        return had

    def add_table(self, table: Table) -> None:
        self.main["tables"].append(table_data(table))

    # ---- Plots ----

    def add_cost(self, title: str, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Accuracy against what a question took: operations, and tokens computed by all models."""
        points = []
        for name, result in results.items():
            ledger = result["ledger"]
            tokens = sum(n for what, n in ledger.items() if what not in ("flops", "cached"))
            interval = [result[key] for key in ("accuracy", "low", "high")]
            points.append({"name": name, "interval": interval, "flops": ledger["flops"], "tokens": tokens})
        self.main["costs"].append({"title": title, "points": points})

    def add_losses(self, folders: Mapping[str, Path]) -> None:
        for name, folder in folders.items():
            rows = [row for _, row in read_rows(folder / "metrics.jsonl")]
            lines = {
                key: [(row["step"], row[key]) for row in rows if key in row] for key in ("loss", "val_loss")
            }
            self.main["losses"].append({"title": name, "lines": lines})

    def add_curve(
        self, name: str, curve: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """A curve of `summary.json`, where all its runs are there."""
        if not {run for runs in curve["lines"].values() for run in runs} <= results.keys():
            return
        lines = {
            line: [[results[run][key] for key in ("accuracy", "low", "high")] for run in runs]
            for line, runs in curve["lines"].items()
        }
        self.main["curves"].append({"title": name, "label": curve["label"], "x": curve["x"], "lines": lines})

    # ---- Mining ----

    def add_mining(self, run: Path, rounds: Sequence[Mapping[str, Any]]) -> None:
        """Each round's funnel, gains and documents."""
        for number, counts in enumerate(rounds, start=1):
            title = f"round {number}" if len(rounds) > 1 else "mining"
            folder = run / "mine" / f"round-{number}" if len(rounds) > 1 else run / "mine"
            triples = read_filtered(folder / "filtered.parquet")
            bars = [(key, counts[key]) for key in ("documents", "annotated", "faithful", "triples")]
            kept = {triple.reason for triple in triples if triple.kept}
            bars += [
                (f"{'kept' if reason in kept else 'dropped'}: {reason}", count)
                for reason, count in counts["reasons"].items()
            ]
            self.main["funnels"].append({"title": title, "bars": bars})
            self._add_gains(title, triples)
            annotations = folder / "annotations.jsonl"
            having = {triple.document_id for triple in triples}
            annotated = read_annotations(annotations) if annotations.is_file() else ()
            self._add_documents(title, triples, [a for a in annotated if a.document.id not in having])

    def _add_gains(self, title: str, triples: Sequence[FilteredTriple]) -> None:
        """How gains are distributed, in bins over the middle 99 %; the outermost hold what is beyond."""
        scored = [triple for triple in triples if triple.gain is not None]
        gains = np.array([triple.gain for triple in scored], dtype=np.float64)
        if not len(gains):
            return
        low, high = np.quantile(gains, (0.005, 0.995))
        edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
        inside = np.clip(gains, edges[0], edges[-1])
        kept = np.array([triple.kept for triple in scored])
        counts = {
            name: np.histogram(inside[which], edges)[0]
            for name, which in (("kept", kept), ("not kept", ~kept))
        }
        self.main["gains"].append(
            {
                "title": title,
                "edges": edges.round(_DIGITS).tolist(),
                "counts": {name: of.tolist() for name, of in counts.items()},
                "taus": sorted({triple.tau for triple in triples}),
            }
        )

    def _add_documents(
        self, title: str, triples: Sequence[FilteredTriple], without: Sequence[Annotated]
    ) -> None:
        """Documents with their rationales, and after them those without a usable one, with why."""
        documents: list[list[FilteredTriple] | Annotated] = [
            list(rows) for _, rows in groupby(triples, key=lambda triple: triple.document_id)
        ]
        documents += without
        if len(documents) > MOST_DOCUMENTS:
            self.main["notes"].append(
                f"{title}: {len(documents)} documents were annotated; {MOST_DOCUMENTS}, drawn evenly from "
                "all of them, are on this page."
            )
            places = np.linspace(0, len(documents) - 1, MOST_DOCUMENTS).astype(int)
            documents = [documents[place] for place in places]
        part = f"documents-{len(self.main['mining'])}"
        index = []
        texts = []
        for rows in documents:
            if not isinstance(rows, list):
                of = rows.document
                index.append((of.id, of.source, 0, 0, None, _why_none(rows)))
                wrote = rows.output if isinstance(rows, Annotation) else ""
                texts.append({"text": of.text, "rationales": [], "wrote": wrote})
                continue
            gains = [row.gain for row in rows if row.gain is not None]
            last = max(rows, key=lambda row: row.end)
            kept = sum(row.kept for row in rows)
            best = round(max(gains), _DIGITS) if gains else None
            index.append((rows[0].document_id, rows[0].source, len(rows), kept, best, ""))
            rationales = [
                {
                    "start": row.start,
                    "text": row.rationale,
                    "gain": _rounded(row.gain),
                    "with": _rounded(row.logprob_with),
                    "without": _rounded(row.logprob_without),
                    "tau": row.tau,
                    "kept": row.kept,
                    "reason": row.reason,
                }
                for row in rows
            ]
            texts.append({"text": last.preceding + last.following, "rationales": rationales})
        self.others[part] = texts
        self.main["mining"].append({"title": title, "part": part, "documents": index})

    # ---- Questions ----

    def add_set(
        self,
        title: str,
        task: Task,
        questions: Sequence[Question],
        runs: Mapping[str, Sequence[Path]],
        limit: int | None = None,
        models: Mapping[str, str] | None = None,
    ) -> dict[str, Solved]:
        """A set of questions with all runs on it: a line for each question of each run, and its trace.

        models: who solved it, by runs, where not all are the same. What `likelihood` would have taken is read
        from a run of that strategy by the same models.
        """
        asked = questions[:limit]
        texts = {question.id: text_digest(question) for question in asked}
        solved = {}
        for name, files in runs.items():
            graded = grade(files, questions, task, limit)
            samples = [read_solved(file, texts) for file in files]
            solved[name] = Solved(samples, graded)
        models = models or dict.fromkeys(solved, "")
        by_likelihood = {
            models[name]: of.samples for name, of in solved.items() if of.traces[0].strategy == "likelihood"
        }
        listed = []
        for name, of in solved.items():
            part = f"traces-{len(self.traces)}"
            self.traces[part] = []
            rows = []
            each = len(of.samples)
            other = by_likelihood.get(models[name])
            for number, grade_of in enumerate(of.graded.strict):
                place, sample = divmod(number, each)
                trace = of.samples[sample][grade_of.id]
                self.traces[part].append(
                    _trace(trace, None if other is None else other[sample % len(other)][trace.id])
                )
                smallest = _rounded(smallest_margin(trace))
                how = (trace.finish, len(trace.steps), smallest, flags_of(trace))
                rows.append((place, sample, grade_of.verdict, grade_of.answer, *how))
            strategy = of.traces[0].strategy
            listed.append({"name": name, "strategy": strategy, "samples": each, "part": part, "rows": rows})
        shown = [_question(question) for question in asked]
        self.main["sets"].append({"title": title, "task": task.title, "questions": shown, "runs": listed})
        return solved


def _size(parts: Mapping[str, str]) -> int:
    return sum(map(len, parts.values()))


def text_digest(question: Question) -> str:
    return digest([question.asked.encode()])


def read_solved(file: Path, texts: Mapping[str, str | None]) -> dict[str, Trace]:
    """The traces of a file, or of the files *.jsonl of a folder, by the ids of their questions.

    texts: digests of the questions' texts by their ids, None where any will do; traces of other questions are
    left out.
    """
    files = sorted(file.glob("*.jsonl")) if file.is_dir() else [file]
    traces = {trace.id: trace for one in files for trace in read_traces(one) if trace.id in texts}
    for trace in traces.values():
        if texts[trace.id] is not None and trace.asked not in ("", texts[trace.id]):
            raise ValueError(f"{file}: question {trace.id!r} had another text when it was solved")
    return traces


def _question(question: Question) -> dict[str, Any]:
    """What is shown of a question; what its data doesn't say is left out."""
    shown = {
        "id": question.id,
        "text": question.text,
        "gold": question.gold,
        "choices": list(question.options.items()),
        "subject": question.subject,
        "level": question.level,
        "solution": question.solution,
    }
    return {key: value for key, value in shown.items() if value or key in ("id", "text", "gold")}


def _trace(trace: Trace, likelihood: Trace | None) -> dict[str, Any]:
    """A trace as a page has it. Scores and margins are rounded; the last step says where the answer is."""
    others = () if likelihood is None or trace.strategy == "likelihood" else likelihood.steps
    would = likelihood_choices(trace.steps, others)
    steps = []
    for step, choice in zip(trace.steps, would, strict=True):
        # Not asdict, which copies every gain of every token: that took two thirds of the time of a page.
        shown = vars(step) | {"scores": _all_rounded(step.scores), "margins": _all_rounded(margins(step))}
        shown["gains"] = None if step.gains is None else [vars(gains) for gains in step.gains]
        shown["scores_without"] = _all_rounded(step.scores_without)
        steps.append(shown | {"likelihood": choice})
    return {
        "steps": steps,
        "answer_at": answer_span(trace.steps[-1].text, trace.answer) if trace.steps else None,
        "samples": [asdict(sample) for sample in trace.samples],
        "tokens": {role: asdict(usage) for role, usage in trace.tokens.items()},
        "seconds": trace.seconds,
    }


def _why_none(annotated: Annotated) -> str:
    """Why a document has no usable rationale: what became of it, and of the rationales that were written."""
    found = cut(annotated)
    counts = ", ".join(f"{n} {outcome}" for outcome, n in Counter(found.rationales).items())
    why = f"{found.outcome}; rationales: {counts or 'none'}" if found.outcome != "too_long" else "too long"
    return why.replace("_", " ")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _all_rounded(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [round(value, _DIGITS) for value in values]
