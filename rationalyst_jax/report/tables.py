"""Tables of a run, for a terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from rationalyst_jax.report.style import p_value, percent, plain_table, points

if TYPE_CHECKING:  # it imports scipy, and help comes before that
    from rationalyst_jax.evaluate.statistics import Interval
    from rationalyst_jax.evaluate.step_errors import StepErrors
    from rationalyst_jax.mine.decontaminate import Contamination
    from rationalyst_jax.roles.usage import Usage


def counts_table(title: str, rows: Mapping[str, object]) -> Table:
    """Two columns, a name and its value; floats with four digits."""
    table = Table(title=escape(title), title_justify="left", show_header=False, min_width=len(title))
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(escape(name), f"{value:.4g}" if isinstance(value, float) else escape(str(value)))
    return table


def certificate_rows(certificate: Mapping[str, Any] | None) -> dict[str, str]:
    """Of `lm/weights/certificate.py`, if there is any: how far each reader was from the model in memory."""
    readers: Mapping[str, Mapping[str, float]] = certificate["readers"] if certificate else {}
    return {
        f"read by {name}": f"logits within {largest['logits']:.1g}, KL {largest['kl_nats']:.1g} nats"
        for name, largest in readers.items()
    }


def outcomes_table(outcomes: Mapping[str, Mapping[str, int]]) -> Table:
    """How many documents of each source were kept, and how many went for which reason, a source a line."""
    table = plain_table("documents", "source")
    total = Counter[str]()
    for counts in outcomes.values():
        total.update(counts)
    reasons = sorted(total.keys() - {"kept"})
    for heading in ("documents", "kept", "kept %", *(reason.replace("_", " ") for reason in reasons)):
        table.add_column(heading, justify="right")
    lines = {**outcomes, "all": total} if len(outcomes) > 1 else outcomes
    for source, counts in lines.items():
        documents = sum(counts.values())
        kept = counts.get("kept", 0)
        numbers = (documents, kept, f"{100 * kept / documents:.1f}", *(counts.get(r, 0) for r in reasons))
        table.add_row(escape(source), *map(str, numbers))
    return table


def contamination_table(found: Mapping[str, "Contamination"]) -> Table:
    """What was found of each task, a task a line."""
    table = plain_table("questions met", "task")
    headings = ("questions", "too short", "met", "documents", "other numbers")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for task, of_task in found.items():
        table.add_row(escape(task), *map(str, astuple(of_task)))
    table.caption = (
        "too short to be looked for; met: by a document; documents: that meet a question;\n"
        "other numbers: that meet one only where numbers are masked"
    )
    return table


def usage_counts(usage: "Usage") -> dict[str, object]:
    """What a role took, by names; nothing where it was asked nothing."""
    if not usage.requests:
        return {}
    counts: dict[str, object] = {
        "tokens written": usage.generated,
        "tokens scored": usage.scored,
        "context tokens sent": usage.prefilled + usage.cached,
        "context tokens computed": usage.prefilled,
        "GFLOP": usage.flops / 1e9,
    }
    return {name: count for name, count in counts.items() if count}


def accuracy_table(title: str, results: Mapping[str, Mapping[str, Any]], baselines: Sequence[str]) -> Table:
    """Accuracy with interval, and what is between it and each baseline, one run a line.

    Each result has `accuracy`, `low`, `high`, `n` and, where a baseline ran on the same questions, `vs_` and
    the name of the baseline: `difference`, `low`, `high` and `p_holm`, which is shown where one baseline is.
    """
    numbers = sorted({r["n"] for r in results.values()})
    title += f" (n = {', '.join(map(str, numbers))})"
    table = plain_table(title)
    headings = [f"− {escape(name)} [95 %]" for name in baselines]
    one = len(baselines) == 1  # a line has room for its p then
    for heading in ("% right [95 %]", *headings, *(["p"] if one else [])):
        table.add_column(heading, no_wrap=True)
    for run, r in results.items():
        compared = [r.get(f"vs_{name}") for name in baselines]
        row = ["–" if c is None else points(c["difference"], c["low"], c["high"]) for c in compared]
        if one:
            row += ["–" if c is None else p_value(c["p_holm"]) for c in compared]
        table.add_row(escape(run), percent(r["accuracy"], r["low"], r["high"]), *row)
    caption = "differences on the same questions, with paired score intervals"
    table.caption = f"{caption}; p: exact McNemar, adjusted (Holm)" if one else caption
    return table


def training_table(title: str, trained: Mapping[str, Mapping[str, float]], examples_of_a_step: int) -> Table:
    """What each RATIONALYST learned from, and for how long, one a line; the caption says whether all took
    equally many steps.

    Each has `rationales`, `steps`, `passes`, `loss` and maybe `validation loss` (nats per target token).
    """
    table = plain_table(title, "RATIONALYST")
    for heading in ("rationales", "steps", "passes", "loss", "validation loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, counts in trained.items():
        counted = (f"{counts['rationales']}", f"{counts['steps']}", f"{counts['passes']:.1f}")
        losses = (f"{counts[key]:.3f}" if key in counts else "–" for key in ("loss", "validation loss"))
        table.add_row(escape(name), *counted, *losses)
    steps = [counts["steps"] for counts in trained.values()]
    budget = f"equal budgets: {steps[0]} steps"
    if len(set(steps)) > 1:
        budget = f"UNEQUAL budgets: {min(steps)} to {max(steps)} steps"
    table.caption = f"{budget} of {examples_of_a_step} examples; losses: nats per target token"
    return table


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """What each round of mining gave, and what its annotator took: a line each.

    Each has `documents`, `triples`, `kept`, `gains` (nats, by quantiles), `generated` (tokens) and `flops`.
    """
    table = plain_table("rounds of mining", "round")
    headings = (
        "documents",
        "rationales",
        "kept",
        "kept %",
        "gain",
        "tokens written",
        "GFLOP",
        "kept / GFLOP",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, of in enumerate(rounds, start=1):
        gains = [f"{of['gains'][q]:.2f}" for q in ("0.25", "0.5", "0.75")] if of["gains"] else ["–"]
        gflop = of["flops"] / 1e9
        table.add_row(
            str(number),
            f"{of['documents']:,}",
            f"{of['triples']:,}",
            f"{of['kept']:,}",
            f"{100 * of['kept'] / of['triples']:.1f}" if of["triples"] else "–",
            " / ".join(gains),
            f"{of['generated']:,}",
            f"{gflop:,.0f}",
            f"{of['kept'] / gflop:.2f}" if gflop else "–",
        )
    table.caption = "gain: quartiles (nats); tokens and operations of the annotator"
    return table


def ledger_table(title: str, ledgers: Mapping[str, Mapping[str, float]]) -> Table:
    """Tokens and operations of each run, as `reason/traces.py::mean_ledger` gives them."""
    table = plain_table(title)
    written = ("agent", "rationalyst", "scorer")
    for heading in (
        *(f"{role}\nwrites" for role in written),
        "scored",
        "context\ncomputed",
        "cached",
        "MFLOP",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, used in ledgers.items():
        tokens = (*(f"generated by {role}" for role in written), "scored", "prefilled", "cached")
        table.add_row(escape(name), *(f"{used[key]:.0f}" for key in tokens), f"{used['flops'] / 1e6:.1f}")
    table.caption = "tokens; cached: of the context, what was there already; MFLOP: of all models"
    return table


def step_errors_table(quality: "StepErrors") -> Table:
    """How well each score tells wrong steps from right ones without a threshold, a score a line."""
    table = plain_table("step errors", "score")
    for heading in ("AUROC [95 %]", "average precision [95 %]"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, score in quality.scores.items():
        table.add_row(
            escape(name), *(_interval(value, 1, ".3f") for value in (score.auroc, score.average_precision))
        )
    share = quality.errors / quality.steps
    table.caption = f"by chance AUROC is 0.5 and average precision {share:.3f}"
    return table


def error_f1_table(quality: "StepErrors") -> Table:
    """How often each score finds the first error at a tuned threshold, a score a line.

    At least one score has an F1."""
    table = plain_table("first errors found", "score")
    for heading in ("F1 % [95 %]", "wrong %", "right %", "threshold"):
        table.add_column(heading, justify="right", no_wrap=True)
    found = {name: score.f1 for name, score in quality.scores.items() if score.f1 is not None}
    for name, f1 in found.items():
        accuracies = (f"{100 * share:.1f}" for share in (f1.on_errors, f1.on_right))
        table.add_row(escape(name), _interval(f1.f1, 100, ".1f"), *accuracies, f"{f1.threshold:.4g}")
    tuned = max(f1.tuned_on for f1 in found.values())
    table.caption = (
        "F1 of two accuracies: on solutions with an error (wrong %), and without (right %);\n"
        f"threshold tuned on {tuned} problems, F1 of the other {quality.problems - tuned}"
    )
    return table


def comparisons_table(quality: "StepErrors") -> Table:
    """The scores that are compared, a pair a line."""
    table = plain_table("compared on the same steps", "scores")
    table.add_column("AUROC difference [95 %]", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    for (a, b), compared in quality.compared.items():
        table.add_row(escape(f"{a} − {b}"), _interval(compared.difference, 1, "+.3f"), f"{compared.p:.2g}")
    table.caption = "p of the permutation test that swaps the scores of whole problems"
    return table


def generators_table(quality: "StepErrors") -> Table:
    """AUROC of the main scores by who wrote the solutions, a generator a line."""
    table = plain_table("AUROC [95 %] by generator", "generator")
    names = [name for name in ("likelihood", "implicit", "gain") if name in quality.scores]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for generator, scores in quality.by_generator.items():
        table.add_row(escape(generator), *(_interval(scores[name], 1, ".2f") for name in names))
    return table


def _interval(interval: "Interval | None", scale: float, form: str) -> str:
    if interval is None:
        return "–"
    value, low, high = (scale * end for end in (interval.mean, interval.low, interval.high))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
