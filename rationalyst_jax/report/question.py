"""One question in a terminal, as the page shows it: what was asked, and what each run did, step by step."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rationalyst_jax.reason.traces import Step, Trace
from rationalyst_jax.report.trace_view import answer_span, first_parting, likelihood_choices, margins
from rationalyst_jax.tasks.question import Question, Verdict


def question_view(
    traces: Mapping[str, Trace],
    question: Question | None = None,
    verdicts: Mapping[str, Verdict] | None = None,
) -> Iterator[RenderableType]:
    """What is printed of one question, with the traces of it by the names of their runs.

    question, verdicts: where they are known. Two traces are told where they part.
    """
    if question is not None:
        yield plain(question.asked)
        yield _words(f"gold answer: {question.gold}", "dim")
    names = list(traces)
    if len(names) == 2:
        parting = first_parting(*(traces[name].steps for name in names))
        where = "both wrote the same steps" if parting is None else f"the two part at step {parting + 1}"
        yield _words(where, "magenta")
    likelihood = next((trace for trace in traces.values() if trace.strategy == "likelihood"), None)
    for name, trace in traces.items():
        yield ""
        verdict = None if verdicts is None else verdicts[name]
        yield Text.assemble(
            (shown(name), "bold"), f" ({trace.strategy}): ", _verdict(verdict), _outcome(trace)
        )
        others = () if likelihood is None or likelihood is trace else likelihood.steps
        would = likelihood_choices(trace.steps, others)
        for number, (step, choice) in enumerate(zip(trace.steps, would, strict=True), start=1):
            is_last = number == len(trace.steps)
            yield from _step(step, number, choice, trace.answer if is_last else None)
        for number, sample in enumerate(trace.samples, start=1):
            answer = "none" if sample.answer is None else sample.answer
            yield _words(f"solution {number}: answer {answer}, ended by {sample.finish}", "dim")
            yield Padding(plain("\n".join(sample.steps)), (0, 0, 0, 4))
        for role, used in trace.tokens.items():
            took = f"{used.generated:,} written, {used.scored:,} scored, {used.prefilled:,} context computed"
            yield _words(f"{role}: {took}, {used.cached:,} cached; {used.flops / 1e6:,.1f} MFLOP", "dim")


def shown(text: str) -> str:
    """A text without what would command a terminal: control characters are seen as signs for them."""
    return "".join(
        letter if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf") else _sign(letter)
        for letter in text
    )


def plain(text: str) -> Text:
    """A text that somebody wrote, without markup."""
    return Text(shown(text))


def _sign(letter: str) -> str:
    code = ord(letter)
    if code < 0x20:
        return chr(0x2400 + code)
    return letter if letter == "\u200d" else "\ufffd"  # the joiner of emoji commands nothing


def _words(text: str, style: str) -> Text:
    return Text(shown(text), style=style)


def _verdict(verdict: Verdict | None) -> tuple[str, str]:
    return ("", "") if verdict is None else (f"{verdict}, ", "green" if verdict == "right" else "red")


def _outcome(trace: Trace) -> str:
    answer = "none" if trace.answer is None else trace.answer
    return shown(f"answer {answer}, ended by {trace.finish}, {trace.seconds:.1f} s")


def _step(step: Step, number: int, likelihood: int | None, answer: str | None) -> Iterator[RenderableType]:
    ended = {"length": ", cut off", "end": ", ends the turn"}.get(step.finish, "")
    yield _words(f"step {number}{ended}", "dim")
    if step.rationale is not None:
        where = "in a context" if step.guided else "in no context"
        cut = ", cut off" if step.rationale_finish == "length" else ""
        said = plain(step.rationale) if step.rationale.strip() else Text("empty", style="italic")
        yield Padding(Text.assemble((f"rationale, {where}{cut}: ", "blue"), said), (0, 0, 0, 2))
    text = plain(step.text)
    if (span := answer_span(step.text, answer)) is not None:
        text.stylize("reverse", *span)
    yield Padding(text, (0, 0, 0, 2))
    if len({*step.candidates}) == 1 and step.scores is None and step.notes is None:
        if len(step.candidates) > 1:
            yield Padding(_words(f"all {len(step.candidates)} candidates are this text", "dim"), (0, 0, 0, 2))
    else:
        yield Padding(_candidates(step, likelihood), (0, 0, 0, 2))


def _candidates(step: Step, likelihood: int | None) -> Table:
    above = margins(step)
    columns = {
        "": [_marks(step, i, likelihood) for i in range(len(step.candidates))],
        "candidate": [_candidate(step, i) for i in range(len(step.candidates))],
        "score": _figures(step.scores),
        "margin": None if above is None else [Text(f"{margin:+.3f}") for margin in above],
        "without": _figures(step.scores_without),
        "note": None if step.notes is None else [plain(note) for note in step.notes],
    }
    known = {name: cells for name, cells in columns.items() if cells is not None}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in known:
        table.add_column(
            name, justify="right" if name in ("score", "margin", "without") else "left", overflow="fold"
        )
    for number, row in enumerate(zip(*known.values(), strict=True)):
        table.add_row(*row, style="bold" if number == step.choice else "")
    return table


def _figures(scores: Sequence[float] | None) -> list[Text] | None:
    return None if scores is None else [Text(f"{score:.3f}") for score in scores]


def _candidate(step: Step, number: int) -> Text:
    """A candidate's text; where gains are recorded, green is what the rationale makes likelier, and red less
    likely, by a tenth of a nat."""
    if step.gains is None:
        return plain(step.candidates[number])
    of = step.gains[number]
    text = Text()
    for piece, under, without in zip(of.tokens, of.logprobs_with, of.logprobs_without, strict=True):
        gain = under - without
        text.append(shown(piece), "green" if gain >= 0.1 else "red" if gain <= -0.1 else "")
    text.rstrip()
    return text


def _marks(step: Step, number: int, likelihood: int | None) -> Text:
    marks = {"taken": number == step.choice, "likelihood's": number == likelihood}
    return Text(", ".join(mark for mark, holds in marks.items() if holds))
