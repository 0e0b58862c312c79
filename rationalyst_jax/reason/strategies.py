"""How the next step is chosen: each strategy is a coroutine that takes a trajectory to its end.

It returns the finished trajectory, and all whole solutions it chose among (none for those that choose step by
step). To add one, write the coroutine and name it in STRATEGIES; `docs/` says more.
"""

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from rationalyst_jax.lm.generate import Generation
from rationalyst_jax.reason.trajectory import Scores, Trajectory

Outcome = tuple[Trajectory, tuple[Trajectory, ...]]
Strategy = Callable[[Trajectory], Coroutine[Any, Any, Outcome]]


async def greedy(trajectory: Trajectory) -> Outcome:
    """The agent alone: one step at a time at temperature 0."""
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

    Solutions are sampled step by step, so that each stops at its answer as everywhere else. Unanswered ones
    don't vote; if none votes the first stands for the question. (Wang et al. 2023, arXiv 2203.11171.)
    """
    config = trajectory.setting.config
    samples = [trajectory.fork() for _ in range(config.candidates)]
    while any(sample.finish is None for sample in samples):
        agreeing: dict[str, list[int]] = {}  # samples with the same text so far share one request
        for place, sample in enumerate(samples):
            if sample.finish is None:
                agreeing.setdefault(sample.written, []).append(place)
        requests = [
            samples[places[0]].step_request(len(places), config.temperature, sample=places[0])
            for places in agreeing.values()
        ]
        proposals = await trajectory.generate("agent", requests)
        for places, candidates in zip(agreeing.values(), proposals, strict=True):
            for place, candidate in zip(places, candidates, strict=True):
                samples[place].take([candidate], 0)
    votes = Counter(sample.answer for sample in samples if sample.answer is not None)
    majority = votes.most_common(1)[0][0] if votes else None  # Counter keeps the order of first sight
    return next(sample for sample in samples if sample.answer == majority), tuple(samples)


async def likelihood(trajectory: Trajectory) -> Outcome:
    """N candidates a step, the most likely one under the scorer taken, without any rationale."""
    config = trajectory.setting.config
    while trajectory.finish is None:
        candidates = await trajectory.propose(config.candidates, config.temperature)
        scores = await trajectory.score(candidates, rationale=None)
        trajectory.take(candidates, _best(scores), scores=scores)
    return trajectory, ()


async def implicit(trajectory: Trajectory) -> Outcome:
    """Implicit supervision (the paper, section 3.4): RATIONALYST writes a rationale, the agent proposes N
    steps without seeing it, and the step most likely under it is taken.

    An empty rationale says nothing: the candidates are then ranked without one.
    """
    config = trajectory.setting.config
    while trajectory.finish is None:
        rationale = await trajectory.rationalize()
        candidates = await trajectory.propose(config.candidates, config.temperature)
        says = _says(rationale)
        scores = await trajectory.score(candidates, says)
        guided = scores is not None and says is not None
        trajectory.take(candidates, _best(scores), scores=scores, rationale=rationale, guided=guided)
    return trajectory, ()


async def explicit(trajectory: Trajectory) -> Outcome:
    """Explicit supervision: the rationale stands in the agent's own context, for this step only.

    One step is sampled at the temperature of `random`: one of N taken uniformly has the same distribution,
    so N would cost more and change nothing. An empty rationale leaves the agent's context as it is.
    """
    config = trajectory.setting.config
    while trajectory.finish is None:
        rationale = await trajectory.rationalize()
        says = _says(rationale)
        candidates = await trajectory.propose(1, config.temperature, says)
        trajectory.take(candidates, 0, rationale=rationale, guided=says is not None)
    return trajectory, ()


STRATEGIES: dict[str, Strategy] = {
    "greedy": greedy,
    "random": random,
    "self_consistency": self_consistency,
    "likelihood": likelihood,
    "implicit": implicit,
    "explicit": explicit,
}
NEED_RATIONALYST = ("implicit", "explicit")


def _best(scores: Scores | None) -> int:
    """The place of the highest score, the first among equals; the first where nothing was ranked."""
    return 0 if scores is None else scores.index(max(scores))


def _says(rationale: Generation) -> str | None:
    return rationale.text if rationale.text.strip() else None
