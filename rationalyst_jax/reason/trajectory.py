"""A trajectory: a question, the steps so far, and what can be asked about them."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from rationalyst_jax.lm.generate import GenerateRequest, Generation, ScoreRequest
from rationalyst_jax.lm.prompt import PromptSet, render
from rationalyst_jax.lm.reduction import reduce_logprobs
from rationalyst_jax.lm.tokenizer import marker_ids
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.roles import Call, Role, Roles, ask
from rationalyst_jax.reason.traces import Step, Usage

# Finds the answer in the text of one step; None where there is none, or none that can be read.
Extract = Callable[[str], str | None]
# Reduced log-likelihoods (nats), one per candidate.
Scores = tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """id is unique in a run: sampling is seeded by it. text is the question as the model shall read it."""

    id: str
    text: str


@dataclass(frozen=True)
class Setting:
    """What all questions of a run have in common."""

    roles: Roles
    prompts: PromptSet
    config: ReasonConfig
    extract: Extract


@dataclass
class Trajectory:
    """The only thing here that changes: grows by one step per `take` until `finish` is set."""

    question: Question
    setting: Setting
    usage: dict[str, Usage] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    answer: str | None = None
    finish: str | None = None

    def fork(self) -> Self:
        """A trajectory of its own from here on; what it uses is still counted with this one."""
        return replace(self, steps=list(self.steps))

    @property
    def written(self) -> str:
        """The steps so far, each with its line break."""
        return "".join(step.text + self.setting.config.step_stop for step in self.steps)

    def seed(self, purpose: str, sample: int = 0) -> int:
        """31 bits from (run seed, question, step, purpose, sample) and nothing else: strategies that share a
        purpose draw the same noise for the same step, so their candidates are equal while their trajectories
        are, and no result depends on the other questions of a batch."""
        key = repr((self.setting.config.seed, self.question.id, len(self.steps), purpose, sample))
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") >> 1

    # What can be asked.

    def step_request(
        self, n: int, temperature: float, rationale: str | None = None, sample: int = 0
    ) -> GenerateRequest:
        """n next steps from the agent; a rationale goes in the agent's own context, for this step only."""
        setting, config = self.setting, self.setting.config
        name = "step" if rationale is None else "step_guided"
        context, _ = self._render(setting.roles.agent, name, rationale=rationale)
        return GenerateRequest(
            context,
            max_tokens=config.max_step_tokens,
            n=n,
            temperature=temperature,
            top_p=config.top_p,
            stop=(config.step_stop,),
            seed=self.seed("step", sample),
            suppress=marker_ids(setting.roles.agent.tokenizer, config.suppress),
        )

    async def propose(self, n: int, temperature: float, rationale: str | None = None) -> list[Generation]:
        """n candidates for the next step."""
        [candidates] = await self.generate("agent", [self.step_request(n, temperature, rationale)])
        return candidates

    async def rationalize(self) -> Generation:
        """RATIONALYST's rationale for what comes next."""
        setting, config = self.setting, self.setting.config
        assert setting.roles.rationalyst is not None  # solve() refuses to start without
        closing = setting.prompts["rationale"].closing
        context, _ = self._render(setting.roles.rationalyst, "rationale")
        request = GenerateRequest(
            context,
            max_tokens=config.max_rationale_tokens,
            temperature=config.rationale_temperature,
            stop=(closing,) if closing else (),
            seed=self.seed("rationale"),
        )
        [[rationale]] = await self.generate("rationalyst", [request])
        return rationale

    async def score(self, candidates: Sequence[Generation], rationale: str | None) -> Scores | None:
        """The scorer's reduced log-likelihood (nats) of each candidate, under the rationale if there is one.

        A step is scored with the line break that ends it, so an early end has its price; one that ended
        the agent's turn has none ("The answer is 7." must not pay for a line break nobody wrote). Equal
        candidates are scored once; None, and nothing asked, where all are equal.
        """
        stop = self.setting.config.step_stop
        written = [c.text if c.finish == "end" and c.text else c.text + stop for c in candidates]
        texts = list(dict.fromkeys(written))
        if len(texts) == 1:
            return None
        setting, config = self.setting, self.setting.config
        scorer = setting.roles.scorer
        name = "follow" if rationale is None else "follow_guided"
        suppress = marker_ids(scorer.tokenizer, config.suppress)
        pairs = [self._render(scorer, name, text, rationale) for text in texts]
        requests = [ScoreRequest(context, continuation, suppress) for context, continuation in pairs]
        results = await ask(Call(scorer.engine, "score", tuple(requests)))
        scored = sum(len(continuation) for _, continuation in pairs)
        self._count("scorer", Usage(prefilled=sum(map(len, {c for c, _ in pairs})), scored=scored))

        values = {
            text: reduce_logprobs(logprobs, config.reduction, config.decay)
            for text, logprobs in zip(texts, results, strict=True)
        }
        for text, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"question {self.question.id}: the scorer gives {value} to step {text!r}")
        return tuple(values[text] for text in written)

    async def generate(self, role: str, requests: Sequence[GenerateRequest]) -> list[list[Generation]]:
        """The generations of each request, in one call to the role's engine, counted."""
        engine = getattr(self.setting.roles, role).engine
        results = await ask(Call(engine, "generate", tuple(requests)))
        generated = sum(len(generation.tokens) for result in results for generation in result)
        self._count(role, Usage(generated, prefilled=sum(len(request.context) for request in requests)))
        return results

    # What can be done.

    def take(
        self,
        candidates: Sequence[Generation],
        choice: int,
        *,
        scores: Scores | None = None,
        rationale: Generation | None = None,
        guided: bool = False,
    ) -> None:
        """Appends the chosen candidate. The answer is looked for in this step alone; one that cannot be read
        stays unanswered. An empty step, or the end of the agent's turn, ends the trajectory; so does the end
        of the agent's positions ("length"), which shows in an empty step that was cut off."""
        chosen = candidates[choice]
        texts = tuple(candidate.text for candidate in candidates)
        wrote = (None, None) if rationale is None else (rationale.text, rationale.finish)
        self.steps.append(Step(chosen.text, chosen.finish, texts, choice, scores, *wrote, guided))
        self.answer = self.setting.extract(chosen.text)
        if self.answer is not None:
            self.finish = "answer"
        elif chosen.finish == "length" and not chosen.tokens:
            self.finish = "length"
        elif chosen.finish == "end" or not chosen.text.strip():
            self.finish = "end"
        elif len(self.steps) == self.setting.config.max_steps:
            self.finish = "max_steps"

    def _render(
        self, role: Role, name: str, target: str | None = None, rationale: str | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Context and target ids of a prompt about this trajectory, left open after the target."""
        prompts = self.setting.prompts
        fields = {
            "question": self.question.text,
            "steps": self.written,
            "preceding": prompts.document.replace("{question}", self.question.text) + self.written,
        }
        if rationale is not None:
            fields["rationale"] = rationale
        return render(role.tokenizer, prompts[name], fields, target=target, close=False)

    def _count(self, role: str, usage: Usage) -> None:
        self.usage[role] = self.usage.get(role, Usage()) + usage
