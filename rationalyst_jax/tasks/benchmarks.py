"""The tasks there are."""

from rationalyst_jax.tasks import arc, ecqa, gsm8k, hellaswag, math, mmlu_pro, proofwriter
from rationalyst_jax.tasks.task import Task

TASKS = {
    task.name: task
    for task in (
        gsm8k.TASK,
        math.TASK,
        math.MATH500,
        ecqa.COMMONSENSE_QA,
        ecqa.ECQA,
        hellaswag.TASK,
        proofwriter.TASK,
        arc.TASK,
        mmlu_pro.TASK,
    )
}


def task_named(name: str) -> Task:
    """The task of that name; ValueError listing the names there are otherwise."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: there are {', '.join(TASKS)}")
    return TASKS[name]
