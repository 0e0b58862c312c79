"""A trajectory: a question, the steps so far, and what can be asked about them."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.engine.requests import Generation, Handle
from rationalyst_jax.lm.trees.reduction import reduce_logprobs
from rationalyst_jax.prompts.prompt import Field, PromptSet
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.traces import UNRATED, Gains, Step
from rationalyst_jax.roles.drive import Call, ask
from rationalyst_jax.roles.role import Model, NotAnswered, Role, Sampling
from rationalyst_jax.roles.usage import Usage
from rationalyst_jax.tasks.question import Question

# Finds the answer to a question in the text of one step; None where there is none, or none that can be read.
Extract = Callable[[str, Question], str | None]
# One for each candidate, the higher the better: reduced log-likelihoods (nats), or ratings.
Scores = tuple[float, ...]

MOST_LINE_BREAKS = 2  # before a step
JUDGE_TOKENS = 8  # more than a number needs
# The whole of what a judge writes: "2", "**3**.", "Rating: 1", "3/3", "2 out of 3".
RATING = re.compile(
    r"""[\s*_`"'(\[]*+
        (?:(?:the|my)\s+)? (?:(?:rating|score)(?:\s+is|[\s*_]*[:=])[\s*_`"'(\[]*)?
        (?P<rating>[0-3])(?:\.0)?
        (?:\s*/\s*3|\s+(?:out\s+)?of\s+3)?
        [\s*_`"')\].!]*+""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Roles:
    """agent proposes steps; rationalyst writes rationales (None: no strategy that needs them can run);
    scorer ranks steps, and judges them (the paper: the untuned model, often the agent's own)."""

    agent: Role
    rationalyst: Role | None
    scorer: Role

    @property
    def models(self) -> list[Model]:
        """Each model once."""
        roles = filter(None, (self.agent, self.rationalyst, self.scorer))
        return list({id(role.model): role.model for role in roles}.values())


@dataclass(frozen=True)
class Setting:
    """What all questions of a run have in common.

    by_subject: prompts with the demonstrations of a subject, for questions that have that subject.
    """

    roles: Roles
    prompts: PromptSet
    config: ReasonConfig
    extract: Extract
    by_subject: Mapping[str, PromptSet] = field(default_factory=dict)


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
        """The steps so far, each with what ends it."""
        return "".join(step.text + step.end for step in self.steps)

    def seed(self, purpose: str, sample: int = 0) -> int:
        """31 bits from (run seed, question, step, purpose, sample) and nothing else: strategies that share a
        purpose draw the same noise for the same step, so their candidates are equal while their trajectories
        are, and no result depends on the other questions of a batch."""
        key = repr((self.setting.config.seed, self.question.id, len(self.steps), purpose, sample))
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") >> 1

    @property
    def prompts(self) -> PromptSet:
        return self.setting.by_subject.get(self.question.subject, self.setting.prompts)

    # ---- What can be asked ----

    def to_propose(
        self, n: int, temperature: float, rationale: str | None = None, sample: int = 0, begun: str = ""
    ) -> Call:
        """Asks the agent for n next steps. A rationale, and those kept with earlier steps, stand in its
        context; so do the line breaks `begun`, with which the steps begin."""
        config = self.setting.config
        agent = self.setting.roles.agent
        how = Sampling(
            config.max_step_tokens,
            n,
            temperature,
            config.top_p,
            stop=config.stop,
            seed=self.seed(f"step{begun}", sample),
            suppress=config.suppress,
        )
        prompt = self.prompts["step" if rationale is None else "step_guided"]
        fields = self._fields(rationale=rationale, with_rationales=config.keep_rationales)
        return agent.model, agent.to_generate(replace(prompt, begins=begun), fields, how)

    def to_rationalize(self, after: str = "", sample: int = 0) -> Call:
        """Asks RATIONALYST for the rationale of what comes next, `after` these words."""
        config = self.setting.config
        prompt = self.prompts["rationale"]
        rationalyst = self.setting.roles.rationalyst
        assert rationalyst is not None  # solve() refuses to start without
        how = Sampling(
            config.max_rationale_tokens,
            temperature=config.rationale_temperature,
            stop=(prompt.closing,) if prompt.closing else (),
            seed=self.seed("rationale", sample),
        )
        return rationalyst.model, rationalyst.to_generate(prompt, self._fields(after), how)

    async def propose(
        self, n: int, temperature: float, rationale: str | None = None, sample: int = 0
    ) -> list[Generation]:
        """Candidates for the next step: n, or fewer where some are nothing but line breaks."""
        [candidates] = await self.ask("agent", [self.to_propose(n, temperature, rationale, sample)])
        return await self._past_line_breaks(candidates, temperature, rationale, sample)

    async def rationalize(self) -> Generation:
        """RATIONALYST's rationale for what comes next."""
        [[rationale]] = await self.ask("rationalyst", [self.to_rationalize()])
        return rationale

    async def propose_and_rationalize(
        self, n: int, temperature: float, sample: int = 0
    ) -> tuple[list[Generation], Generation]:
        """Both at once: the agent does not see the rationale."""
        calls = self.to_propose(n, temperature, sample=sample), self.to_rationalize()
        agent, rationalyst = await ask(*calls)
        self._count("agent", calls[0][0], agent)
        self._count("rationalyst", calls[1][0], rationalyst)
        candidates = await self._past_line_breaks(agent.result, temperature, None, sample)
        return candidates, rationalyst.result[0]

    async def _past_line_breaks(
        self, candidates: Sequence[Generation], temperature: float, rationale: str | None, sample: int
    ) -> list[Generation]:
        """The candidates, each of which began with line breaks replaced by what the agent writes after them.

        A line break ends a step, not one that has not begun: where a model parts its steps by empty lines,
        each would otherwise be followed by an empty step, which ends the trajectory. A candidate that has not
        begun after MOST_LINE_BREAKS is left out, but where all are such.
        """
        candidates = list(candidates)
        for number in range(1, MOST_LINE_BREAKS + 1):
            begun = "\n" * number
            blank = [place for place, candidate in enumerate(candidates) if self._is_blank(candidate)]
            samples = [sample * len(candidates) + place for place in blank]
            calls = [self.to_propose(1, temperature, rationale, one, begun) for one in samples]
            if not calls:
                return candidates
            for place, [candidate] in zip(blank, await self.ask("agent", calls), strict=True):
                candidates[place] = candidate
        return [candidate for candidate in candidates if not self._is_blank(candidate)] or candidates

    async def score(self, candidates: Sequence[Generation], rationale: str | None) -> Scores:
        """The scorer's reduced log-likelihood (nats) of each candidate, under the rationale if there is one.

        A step is scored with what ends it, so an early end has its price; one that ended the agent's turn has
        none ("The answer is 7." must not pay for a line break nobody wrote). Equal candidates are scored
        once.
        """
        calls = self._to_score(candidates, rationale)
        found = await self.ask("scorer", list(calls.values()))
        return self._reduced(candidates, dict(zip(calls, found, strict=True)))

    async def gains(
        self, candidates: Sequence[Generation], rationale: str
    ) -> tuple[Scores, Scores, tuple[Gains, ...] | None]:
        """The scores under a rationale, those without it, and what it does to each candidate's tokens (None
        where a candidate begins with other tokens without it).

        The scores without it are for people to look at, no part of the method: they are not counted, though
        later steps may find more of their context in the cache.
        """
        scorer = self.setting.roles.scorer
        guided = self._to_score(candidates, rationale)
        plain = self._to_score(candidates, None)
        under = dict(zip(guided, await self.ask("scorer", list(guided.values())), strict=True))
        handles = await ask(*plain.values())
        without = {text: handle.result for text, handle in zip(plain, handles, strict=True)}
        found = {}
        for text, (_, request) in guided.items():
            ids = request.continuation
            if ids != plain[text][1].continuation:
                break
            values = ([round(float(p), 4) for p in of[text]] for of in (under, without))
            found[text] = Gains(_pieces(scorer.tokenizer, ids), *map(tuple, values))
        whole = len(found) == len(guided)
        gains = tuple(found[self._scored(candidate)] for candidate in candidates) if whole else None
        return self._reduced(candidates, under), self._reduced(candidates, without), gains

    def _to_score(self, candidates: Sequence[Generation], rationale: str | None) -> dict[str, Call]:
        """Asks the scorer for the log-probabilities of each text among the candidates."""
        scorer = self.setting.roles.scorer
        prompt = self.prompts["follow" if rationale is None else "follow_guided"]
        fields = self._fields(rationale=rationale)
        suppress = self.setting.config.suppress
        texts = dict.fromkeys(map(self._scored, candidates))
        return {text: (scorer.model, scorer.to_score(prompt, fields, text, suppress)) for text in texts}

    def _reduced(self, candidates: Sequence[Generation], logprobs: Mapping[str, np.ndarray]) -> Scores:
        """Each candidate's score, from the log-probabilities of the texts' tokens."""
        config = self.setting.config
        values = {}
        for text, of_text in logprobs.items():
            values[text] = reduce_logprobs(of_text, config.reduction, config.decay)
            if not math.isfinite(values[text]):
                raise NotAnswered(f"the scorer gives {values[text]} to step {text!r}")
        return tuple(values[self._scored(candidate)] for candidate in candidates)

    async def rationales_after(self, candidates: Sequence[Generation]) -> list[Generation]:
        """RATIONALYST's rationale for what would come after each candidate."""
        ends = [text + end for text, end in map(self._ended, candidates)]
        calls = [self.to_rationalize(end, sample) for sample, end in enumerate(ends)]
        return [rationale for [rationale] in await self.ask("rationalyst", calls)]

    async def judge(self, candidates: Sequence[Generation]) -> tuple[Scores, tuple[str, ...]]:
        """The scorer's rating of the solution with each candidate, from 0 to 3, and its words.

        Only words that are a rating and nothing else count: the digits of "20 / 3 = 6" rate nothing. Other
        words count as UNRATED, the middle: they say nothing of the candidate, so it is put neither behind one
        that was found wrong nor before one that was found right. Where none is rated all are equal.
        """
        scorer = self.setting.roles.scorer
        prompt = self.prompts["judge"]
        how = Sampling(JUDGE_TOKENS, temperature=0, stop=("\n",), suppress=self.setting.config.suppress)
        calls = []
        for candidate in candidates:
            fields = self._fields("".join(self._ended(candidate)))
            calls.append((scorer.model, scorer.to_generate(prompt, fields, how)))
        words = tuple(verdict.text for [verdict] in await self.ask("scorer", calls))
        found = (RATING.fullmatch(text) for text in words)
        return tuple(float(match["rating"]) if match else UNRATED for match in found), words

    async def ask(self, role: str, calls: Sequence[Call]) -> list[Any]:
        """The results of calls to one role, counted."""
        handles = await ask(*calls)
        for (model, _), handle in zip(calls, handles, strict=True):
            self._count(role, model, handle)
        return [handle.result for handle in handles]

    # ---- What can be done ----

    def take(
        self,
        candidates: Sequence[Generation],
        choice: int,
        *,
        scores: Scores | None = None,
        rationale: Generation | None = None,
        guided: bool = False,
        notes: tuple[str, ...] | None = None,
        scores_without: Scores | None = None,
        gains: tuple[Gains, ...] | None = None,
    ) -> None:
        """Appends the chosen candidate. The answer is looked for in this step alone; one that cannot be read
        stays unanswered. An empty step, or the end of the agent's turn (where a step is not a turn), ends the
        trajectory; so does the end of the agent's positions ("length"), which shows in an empty step that was
        cut off."""
        config = self.setting.config
        chosen = candidates[choice]
        texts = tuple(self._ended(candidate)[0] for candidate in candidates)
        wrote = (None, None) if rationale is None else (rationale.text, rationale.finish)
        text, end = self._ended(chosen)
        recorded = (scores_without, gains)
        step = Step(text, chosen.finish, texts, choice, scores, *wrote, guided, notes, end, *recorded)
        self.steps.append(step)
        self.answer = self.setting.extract(text, self.question)
        if self.answer is not None:
            self.finish = "answer"
        elif chosen.finish == "length" and not chosen.tokens:
            self.finish = "length"
        elif (chosen.finish == "end" and config.step_end != "turn") or not text.strip():
            self.finish = "end"
        elif len(self.steps) == config.max_steps:
            self.finish = "max_steps"

    def _ended(self, candidate: Generation) -> tuple[str, str]:
        """The text of a step, with the mark that ends its sentence, and the white space after it."""
        mark = candidate.stop.rstrip()
        gap = candidate.stop[len(mark) :] or (" " if self.setting.config.step_end == "sentence" else "\n")
        return candidate.text + mark, gap

    def _is_blank(self, candidate: Generation) -> bool:
        """Whether a candidate is nothing but what ends a step; the end of the agent's turn is more."""
        return candidate.finish == "stop" and not self._ended(candidate)[0].strip()

    def _scored(self, candidate: Generation) -> str:
        text, end = self._ended(candidate)
        return text if candidate.finish == "end" and text else text + end

    def _fields(
        self, after: str = "", rationale: str | None = None, with_rationales: bool = False
    ) -> Mapping[str, Field]:
        """The values of a prompt's placeholders, with `after` as the last words of this trajectory."""
        prompts = self.prompts
        opening = prompts.document.replace("{question}", self.question.asked)
        steps: Field = self.written + after
        preceding: Field = opening + steps
        if with_rationales:
            steps = []
            for step in self.steps:
                if step.guided and step.rationale is not None:
                    steps += prompts["step_guided"].inserted("rationale", step.rationale)
                steps.append((step.text + step.end, False))
            preceding = [(opening, False), *steps]
        fields = {"question": self.question.asked, "steps": steps, "preceding": preceding}
        return fields if rationale is None else fields | {"rationale": rationale}

    def _count(self, role: str, model: Any, handle: Handle) -> None:
        self.usage[role] = self.usage.get(role, Usage()) + Usage.of(model, handle)


def mean_logprob(generation: Generation) -> float:
    """How sure a model was of what it wrote: the mean log-probability (nats) of its tokens; there are
    some."""
    return float(np.mean(generation.logprobs, dtype=np.float64))


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds; of a character in several tokens the last one adds it."""
    begun = [list(ids[:count]) for count in range(1, len(ids) + 1)]
    *early, whole = tokenizer.batch_decode(begun, clean_up_tokenization_spaces=False)
    ends = ["", *(text.rstrip("\ufffd") for text in early), whole]
    return tuple(text[len(before) :] for before, text in pairwise(ends))
