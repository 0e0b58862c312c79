"""What can be seen in a trace: how close its choices were, what was cut off, where its answer stands.

The page and the terminal show the same, from here.
"""

import re
from collections.abc import Mapping, Sequence

from rationalyst_jax.reason.traces import Step, Trace

# What a list of questions is filtered by, beside how they were graded and how they ended.
FLAGS: Mapping[str, str] = {
    "step_cut": "a step was cut off",
    "rationale_empty": "a rationale is empty",
    "rationale_cut": "a rationale was cut off",
    "unguided": "a rationale was in no context",
    "unrated": "candidates were not ranked",
}


def flags_of(trace: Trace) -> list[str]:
    """Which of FLAGS hold for a trace."""
    wrote = [step for step in trace.steps if step.rationale is not None]
    found = {
        "step_cut": any(step.finish == "length" for step in trace.steps),
        "rationale_empty": any(not (step.rationale or "").strip() for step in wrote),
        "rationale_cut": any(step.rationale_finish == "length" for step in wrote),
        "unguided": any(not step.guided for step in wrote),
        "unrated": any(step.scores is None and len({*step.candidates}) > 1 for step in trace.steps),
    }
    return [name for name in FLAGS if found[name]]


def margins(step: Step) -> list[float] | None:
    """By how much each candidate's score is above the best one of another text (nats, or points of a judge);
    None where nothing was ranked, or there is no other text."""
    if step.scores is None or len({*step.candidates}) == 1:
        return None
    scored = list(zip(step.candidates, step.scores, strict=True))
    return [score - max(other for text, other in scored if text != own) for own, score in scored]


def smallest_margin(trace: Trace) -> float | None:
    """The smallest margin of a step that was taken; None where no step had one."""
    taken = [of[step.choice] for step in trace.steps if (of := margins(step)) is not None]
    return min(taken, default=None)


def answer_span(text: str, answer: str | None) -> tuple[int, int] | None:
    """Where an answer stands in a text: its last place there, white space and commas between its characters
    aside; None where it does not stand there in these characters."""
    letters = [re.escape(letter) for letter in answer or "" if letter != "," and not letter.isspace()]
    if not letters:
        return None
    word = re.compile(r"(?<!\w)" + r"[,\s]*".join(letters) + r"(?!\w)")
    found = list(word.finditer(text))
    return found[-1].span() if found else None


def first_parting(a: Sequence[Step], b: Sequence[Step]) -> int | None:
    """The number, from 0 on, of the first step in which two trajectories are not the same text; None where
    they are the same throughout."""
    for number in range(max(len(a), len(b))):
        if number >= len(a) or number >= len(b) or a[number].text != b[number].text:
            return number
    return None


def likelihood_choices(steps: Sequence[Step], likelihood: Sequence[Step] = ()) -> list[int | None]:
    """Of each step, which candidate the strategy `likelihood` would have taken, as far as that is known.

    Recorded scores without the rationale say it. So does a trace of that strategy for the steps before which
    both had written the same, if both had the same candidates. None elsewhere.
    """
    choices = [
        None if step.scores_without is None else step.scores_without.index(max(step.scores_without))
        for step in steps
    ]
    for number, (step, other) in enumerate(zip(steps, likelihood, strict=False)):
        if choices[number] is None and step.candidates == other.candidates:
            choices[number] = other.choice
        if step.text != other.text:
            break
    return choices
