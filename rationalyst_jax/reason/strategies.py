"""How the next step is chosen: each strategy is a coroutine that takes a trajectory to its end.

It returns the finished trajectory, and all whole solutions it chose among (none for those that choose step by
step). To add one, write the coroutine and name it in STRATEGIES; `docs/extending.md` says more.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rationalyst_jax.lm.engine.requests import Generation
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.traces import Gains
from rationalyst_jax.reason.trajectory import Scores, Trajectory, mean_logprob
from rationalyst_jax.roles.drive import together

Outcome = tuple[Trajectory, tuple[Trajectory, ...]]
Strategy = Callable[[Trajectory], Coroutine[Any, Any, Outcome]]


# ---- The agent alone ----


async def greedy(trajectory: Trajectory) -> Outcome:
    """One step at a time at temperature 0."""
    while trajectory.finish is None:
        trajectory.take(await trajectory.propose(1, temperature=0), 0)
    return trajectory, ()


async def random(trajectory: Trajectory) -> Outcome:
    """The paper's baseline: N candidates a step, one of them taken uniformly (seeded)."""
    config = trajectory.setting.config
    while trajectory.finish is None:
        candidates = await trajectory.propose(config.candidates, config.temperature)
        choice = np.random.default_rng(trajectory.seed("choice")).integers(len(candidates))
        trajectory.take(candidates, int(choice))
    return trajectory, ()


async def self_consistency(trajectory: Trajectory) -> Outcome:
    """N whole sampled solutions; the majority of their answers, the first seen among equals.

    Unanswered ones don't vote; if none votes the first stands for the question. (Wang et al. 2023,
    arXiv 2203.11171.)
    """
    samples = await _solutions(trajectory, _sampled)
    votes = Counter(sample.answer for sample in samples if sample.answer is not None)
    majority = votes.most_common(1)[0][0] if votes else None  # Counter keeps the order of first sight
    return next(sample for sample in samples if sample.answer == majority), tuple(samples)


async def _sampled(number: int, sample: Trajectory) -> None:
    """A whole solution, step by step, so that it stops at its answer as everywhere else."""
    while sample.finish is None:
        temperature = sample.setting.config.temperature
        sample.take(await sample.propose(1, temperature, sample=number), 0)


async def _solutions(
    trajectory: Trajectory, write: Callable[[int, Trajectory], Coroutine[Any, Any, None]]
) -> list[Trajectory]:
    """N solutions written at once."""
    samples = [trajectory.fork() for _ in range(trajectory.setting.config.candidates)]
    await together([write(number, sample) for number, sample in enumerate(samples)])
    return samples


# ---- Guides: what candidates are worth ----


@dataclass(frozen=True)
class Ranking:
    """scores: one for each candidate. rationale: what was said before any was seen, and whether they were
    ranked under it (`guided`). notes: what was written about each. scores_without, gains: what is recorded
    of the rationale's part in the scores (`traces.py::Step`)."""

    scores: Scores
    rationale: Generation | None = None
    guided: bool = False
    notes: tuple[str, ...] | None = None
    scores_without: Scores | None = None
    gains: tuple[Gains, ...] | None = None


Guide = Callable[[Trajectory, Sequence[Generation], Generation | None], Awaitable[Ranking]]


async def by_likelihood(
    trajectory: Trajectory, candidates: Sequence[Generation], _: Generation | None
) -> Ranking:
    """The likelihood under the scorer, without any rationale."""
    return Ranking(await trajectory.score(candidates, None))


async def by_rationale(
    trajectory: Trajectory, candidates: Sequence[Generation], rationale: Generation | None
) -> Ranking:
    """The likelihood under the scorer and a rationale that knows none of the candidates.

    An empty rationale says nothing: the candidates are then ranked without one.
    """
    assert rationale is not None
    says = _says(rationale)
    if says is None or not trajectory.setting.config.record_gains:
        return Ranking(await trajectory.score(candidates, says), rationale, says is not None)
    scores, scores_without, gains = await trajectory.gains(candidates, says)
    return Ranking(scores, rationale, True, scores_without=scores_without, gains=gains)


async def by_confidence(
    trajectory: Trajectory, candidates: Sequence[Generation], _: Generation | None
) -> Ranking:
    """How sure RATIONALYST is of the rationale it writes after each candidate (the released older script).

    Where there is no room left to write one, its candidate is the worst.
    """
    rationales = await trajectory.rationales_after(candidates)
    sure = [mean_logprob(rationale) for rationale in rationales if rationale.tokens]
    worst = min(sure, default=0.0) - 1
    scores = (mean_logprob(r) if r.tokens else worst for r in rationales)
    return Ranking(tuple(scores), notes=tuple(rationale.text for rationale in rationales))


async def by_judge(trajectory: Trajectory, candidates: Sequence[Generation], _: Generation | None) -> Ranking:
    """The scorer's ratings of the solution so far, from 0 to 3 (the paper's verifier baseline).

    Where none of its verdicts is a rating, all candidates are equal and the first one is taken.
    """
    scores, words = await trajectory.judge(candidates)
    return Ranking(scores, notes=words)


GUIDES: dict[str, Guide] = {
    "likelihood": by_likelihood,
    "implicit": by_rationale,
    "rationale_confidence": by_confidence,
    "judge": by_judge,
}


async def _propose(
    trajectory: Trajectory, guide: Guide, n: int, sample: int = 0
) -> tuple[list[Generation], Generation | None]:
    """n candidates, and the rationale if the guide wants one beforehand."""
    temperature = trajectory.setting.config.temperature
    if guide is by_rationale:
        return await trajectory.propose_and_rationalize(n, temperature, sample)
    return await trajectory.propose(n, temperature, sample=sample), None


# ---- The agent guided ----


async def stepwise(guide: Guide, trajectory: Trajectory) -> Outcome:
    """N candidates a step, the best one taken, the first among equals. Where all are the same text nothing is
    ranked."""
    while trajectory.finish is None:
        candidates, rationale = await _propose(trajectory, guide, trajectory.setting.config.candidates)
        if len({(c.text, c.stop, c.finish) for c in candidates}) == 1:
            trajectory.take(candidates, 0, rationale=rationale)
        else:
            ranking = await guide(trajectory, candidates, rationale)
            trajectory.take(candidates, ranking.scores.index(max(ranking.scores)), **vars(ranking))
    return trajectory, ()


async def explicit(trajectory: Trajectory) -> Outcome:
    """Explicit supervision: the rationale stands in the agent's own context, for this step only or (the
    config's `keep_rationales`) for all later ones too.

    One step is sampled at the temperature of `random`: one of N taken uniformly has the same distribution,
    so N would cost more and change nothing. An empty rationale leaves the agent's context as it is.
    """
    while trajectory.finish is None:
        rationale = await trajectory.rationalize()
        says = _says(rationale)
        candidates = await trajectory.propose(1, trajectory.setting.config.temperature, says)
        trajectory.take(candidates, 0, rationale=rationale, guided=says is not None)
    return trajectory, ()


async def best_of_n(trajectory: Trajectory) -> Outcome:
    """N whole solutions; the one whose steps have the highest mean score under the config's `guide`."""
    guide = GUIDES[trajectory.setting.config.guide]

    async def write(number: int, sample: Trajectory) -> None:
        while sample.finish is None:
            candidates, rationale = await _propose(sample, guide, 1, number)
            sample.take(candidates, 0, **vars(await guide(sample, candidates, rationale)))

    samples = await _solutions(trajectory, write)
    return max(samples, key=_mean_score), tuple(samples)


async def beam(trajectory: Trajectory) -> Outcome:
    """The `beams` best partial solutions by the mean score of their steps under the config's `guide`, each of
    which proposes N steps; the best of those that ended (beam search as in arXiv 2305.00633, with this
    method's scores)."""
    config = trajectory.setting.config
    guide = GUIDES[config.guide]
    live = [trajectory]

    async def grow(number: int, parent: Trajectory) -> list[Trajectory]:
        if parent.finish is not None:
            return [parent]
        candidates, rationale = await _propose(parent, guide, config.candidates, number)
        ranking = await guide(parent, candidates, rationale)
        children = {}
        for choice in range(len(candidates)):
            child = parent.fork()
            child.take(candidates, choice, **vars(ranking))
            children.setdefault((child.written, child.finish), child)
        return list(children.values())

    while any(one.finish is None for one in live):
        grown = await together([grow(number, parent) for number, parent in enumerate(live)])
        live = sorted((c for family in grown for c in family), key=_mean_score, reverse=True)[: config.beams]
    return live[0], tuple(live)


STRATEGIES: dict[str, Strategy] = {
    "greedy": greedy,
    "random": random,
    "self_consistency": self_consistency,
    **{name: partial(stepwise, guide) for name, guide in GUIDES.items()},
    "explicit": explicit,
    "best_of_n": best_of_n,
    "beam": beam,
}


def guided_by(config: ReasonConfig) -> str:
    """What a run's candidates are ranked by: its guide, where the strategy takes any, or the strategy."""
    return config.guide if config.strategy in ("best_of_n", "beam") else config.strategy


def needs_rationalyst(config: ReasonConfig) -> bool:
    """Whether a run's strategy, or its guide, asks for rationales."""
    return guided_by(config) in ("implicit", "rationale_confidence", "explicit")


def check_strategy(config: ReasonConfig, *, has_rationalyst: bool, can_score: bool = True) -> None:
    """Raises ValueError for a strategy that isn't there, or that needs a RATIONALYST, or log-probabilities of
    the scorer, where there are none."""
    if config.strategy not in STRATEGIES:
        raise ValueError(f"reason: no strategy {config.strategy!r}, only {', '.join(STRATEGIES)}")
    by = guided_by(config)
    if needs_rationalyst(config) and not has_rationalyst:
        raise ValueError(
            f"reason: strategy {config.strategy!r} by {by} needs a rationalyst; without one there are "
            "greedy, random, self_consistency, likelihood, judge, and best_of_n and beam with another guide"
        )
    if by in ("implicit", "likelihood") and not can_score:
        raise ValueError(
            f"reason: strategy {config.strategy!r} by {by} needs log-probabilities: the scorer must be a "
            "checkpoint, or an endpoint with a tokenizer"
        )


def prompts_of(config: ReasonConfig) -> dict[str, tuple[str, ...]]:
    """The prompts that each role is asked with."""
    by = guided_by(config)
    step = ("step", "step_guided") if by == "explicit" else ("step",)
    return {"agent": step} | _ASKED.get(by, {})


_ASKED: dict[str, dict[str, tuple[str, ...]]] = {
    "likelihood": {"scorer": ("follow",)},
    "implicit": {"rationalyst": ("rationale",), "scorer": ("follow", "follow_guided")},
    "rationale_confidence": {"rationalyst": ("rationale",)},
    "explicit": {"rationalyst": ("rationale",)},
    "judge": {"scorer": ("judge",)},
}


def _mean_score(solution: Trajectory) -> float:
    return float(np.mean([step.scores[step.choice] for step in solution.steps if step.scores]))


def _says(rationale: Generation) -> str | None:
    return rationale.text if rationale.text.strip() else None
