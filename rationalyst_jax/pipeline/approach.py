"""One way to solve questions: what a run of an experiment and an approach of a benchmark have in common."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rationalyst_jax.lm.trees.reduction import Reduction
from rationalyst_jax.reason.config import GuideName, ReasonConfig

OVERRIDES = ("candidates", "keep_rationales", "guide", "reduction", "decay")
ONE_CANDIDATE = ("greedy", "explicit")


@dataclass(frozen=True)
class Approach:
    """One way to solve a question.

    Attributes:
        strategy: How the next step is chosen: a strategy of `rationalyst reason`.
        candidates: Number of candidates, instead of the one in `reason`.
        keep_rationales: Whether explicit keeps rationales, instead of what `reason` says.
        guide: What best_of_n and beam rank candidates by, instead of what `reason` says.
        reduction: How the log-probabilities of a proposed step's tokens become its score, instead of what
            `reason` says.
        decay: Weight of a token relative to the one before it in that score, instead of what `reason` says.
        budget_of: Name of an earlier one, on the same questions. This one has as many candidates as take the
            FLOPs of that one.
    """

    strategy: str
    candidates: int | None = None
    keep_rationales: bool | None = None
    guide: GuideName | None = None
    reduction: Reduction | None = None
    decay: float | None = None
    budget_of: str | None = None

    def applied(self, reason: ReasonConfig) -> ReasonConfig:
        """How questions are solved: as `reason` says, but for what is said here. ValueError as there."""
        own = {name: getattr(self, name) for name in OVERRIDES if getattr(self, name) is not None}
        return replace(reason, strategy=self.strategy, **own)

    def check_budget(self, before: Iterable[str]) -> None:
        """Raises ValueError where it cannot have the budget it wants.

        before: names of those that come before it, on the same questions.
        """
        if self.budget_of is None:
            return
        if self.strategy in ONE_CANDIDATE:
            raise ValueError(f"{self.strategy} has one candidate at any budget")
        if self.budget_of not in (names := list(before)):
            raise ValueError(
                f"wants the budget of {self.budget_of!r}; on the same questions there are before it: "
                f"{', '.join(names) or 'none'}"
            )

    def check_scoring(self, reason: ReasonConfig) -> None:
        """Raises ValueError for a setting of scores where nothing is scored."""
        from rationalyst_jax.reason.strategies import prompts_of

        given = [key for key in ("reduction", "decay") if getattr(self, key) is not None]
        if given and "follow" not in prompts_of(self.applied(reason)).get("scorer", ()):
            raise ValueError(f"scores no candidates, its {given[0]} changes nothing")
