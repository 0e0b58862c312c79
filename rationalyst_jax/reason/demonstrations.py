"""What an agent is shown before its question: our own shots, or ones drawn from a training split."""

import random
from collections.abc import Mapping, Sequence

from rationalyst_jax.files.settings import digest
from rationalyst_jax.prompts.prompt import Demonstrations, PromptSet, Shot, load_demonstrations
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Task

DRAWN = 5  # shots, where the paper does not say how many


def shown(
    prompts: PromptSet,
    task: Task,
    config: ReasonConfig,
    asked: Sequence[Question],
    pool: Sequence[Question] | None = None,
) -> tuple[PromptSet, Mapping[str, PromptSet]]:
    """The prompts with a task's demonstrations, and those of subjects that have shots of their own.

    pool: questions to draw shots from by `config.seed`; None: our own shots. Never drawn are questions that
    are `asked`, and rows that say that they belong to the split that is evaluated. Raises ValueError where
    there are fewer shots than wanted, or prompts have no place for them.
    """
    own = load_demonstrations(task.demonstrations)
    if pool is None:
        wanted = len(own.shots) if config.shots is None else config.shots
        if wanted > len(own.shots):
            raise ValueError(f"reason: shots is {wanted}, {task.name} has {len(own.shots)} of our own")
        return prompts.shown(_with(own, own.shots[:wanted])), {}

    wanted = config.shots
    if wanted is None:
        wanted = DRAWN if task.paper is None or task.paper.shots is None else task.paper.shots
    texts = {question.asked for question in asked}
    free = [q for q in pool if q.gold and q.asked not in texts and q.split != task.split]
    subjects = sorted({question.subject for question in asked}) if task.shots_by_subject else [""]
    by_subject = {}
    for subject in subjects:
        among = [question for question in free if subject in ("", question.subject)]
        if len(among) < wanted:
            of = f" of subject {subject!r}" if subject else ""
            raise ValueError(f"reason: {wanted} shots{of} are to be drawn, but there are {len(among)}")
        drawn = random.Random(f"shots-{config.seed}").sample(among, wanted)
        shots = tuple(Shot(question.asked, task.worked(question)) for question in drawn)
        by_subject[subject] = prompts.shown(_with(own, shots))
        if by_subject[subject] == prompts:
            raise ValueError(f"reason: prompts {prompts.version} have no place for shots")
    version = digest(found.version.encode() for found in by_subject.values())[:8]
    first = next(iter(by_subject.values()))
    named = PromptSet(f"{prompts.version}+{task.demonstrations}-{version}", first.document, first.prompts)
    return named, by_subject if task.shots_by_subject else {}


def _with(own: Demonstrations, shots: tuple[Shot, ...]) -> Demonstrations:
    if shots == own.shots:
        return own
    parts = (text.encode() for shot in shots for text in (shot.question, shot.solution))
    return Demonstrations(f"{own.version}-{digest(parts)[:8]}", own.instruction, shots)
