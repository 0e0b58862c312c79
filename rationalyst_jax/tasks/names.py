"""The names of the tasks, for help texts and types: light to import, as the tasks are not."""

from typing import Literal

TaskName = Literal[
    "gsm8k", "math", "math500", "commonsense_qa", "ecqa", "hellaswag", "proofwriter", "arc", "mmlu_pro"
]
