# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#     provenance: []
#     toc_visible: true
#   kaggle:
#     accelerator: tpuV5e8
#     isGpuEnabled: false
#     isInternetEnabled: true
#     language: python
#     sourceType: notebook
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # RATIONALYST from Llama-3.2-1B, on one chip
#
# From documents of your own to a model that helps Llama choose its next step, and back to Hugging Face: the model writes
# thoughts into the documents, those that make the following text more likely are kept, adapters (LoRA) are trained on
# them, GSM8K is solved with and without their help, and the merged checkpoint is downloaded or goes to the Hub.
#
# One TPU v5e of 16 GiB, or a GPU that has bfloat16 (L4, A100 and newer), is enough. With `FULL = False` the same cells run
# in minutes on any machine, with the small model that the package brings along.

# %% [markdown]
# ## Install
#
# Where the installation changes a package that is in memory already, as on Colab, the kernel ends itself after
# this cell and starts again at once: **run all cells again** then. The second time nothing is installed. (Kaggle's
# *Save & Run All* does not start it again: run the cells in the editor there.)

# %%
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = "rationalyst_jax{extra}"  # or "WHEEL{extra}", or "rationalyst_jax{extra} @ git+https://ADDRESS" of a clone


def versions_in_memory() -> dict[str, str]:
    """What is installed now of the packages that this kernel has loaded."""
    return {name: importlib.metadata.version(name) for name in ("jax", "numpy") if name in sys.modules}


if importlib.util.find_spec("rationalyst_jax") is None:
    on_tpu = Path("/dev/vfio/0").exists() or Path("/dev/accel0").exists()
    extra = "[tpu]" if on_tpu else "[cuda12]" if shutil.which("nvidia-smi") else ""
    before = versions_in_memory()
    wanted = PACKAGE.format(extra=extra)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=True)
    if versions_in_memory() != before:
        os.kill(os.getpid(), 9)

# %% [markdown]
# ## The model
#
# Meta's weights are gated. Accept the licence on the page of
# [Llama-3.2-1B-Instruct](https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct), and make a token with the right to
# read. On Colab put it under *Secrets* (the key on the left) as `HF_TOKEN` and allow this notebook to see it. On Kaggle it is
# *Add-ons → Secrets*, with the same name. Elsewhere set the variable `HF_TOKEN`.

# %%
FULL = False

RUN = Path(
    "rationalyst-llama" if FULL else "rationalyst-llama-small"
)  # a second run of a cell goes on where the first one was
RUN.mkdir(parents=True, exist_ok=True)


def token() -> str | None:
    """The token for the Hub, from where this host keeps secrets."""
    if importlib.util.find_spec("kaggle_secrets"):  # first: Kaggle's images have Colab's package too
        from kaggle_secrets import UserSecretsClient

        return UserSecretsClient().get_secret("HF_TOKEN")
    if importlib.util.find_spec("google.colab"):
        from google.colab import userdata

        return userdata.get("HF_TOKEN")
    return os.environ.get("HF_TOKEN")


if FULL:
    from huggingface_hub import hf_hub_download, snapshot_download

    wanted = ["*.json", "*.safetensors", "LICENSE*"]
    MODEL = snapshot_download("meta-llama/Llama-3.2-1B-Instruct", token=token(), allow_patterns=wanted)
else:
    MODEL = "world"

# %% [markdown]
# ## Documents and questions
#
# Documents are rows with a `text`: replace `texts` by your own. Here they are solved problems of GSM8K's training split, as
# in the paper; the questions are of its test split.

# %%
from rationalyst_jax.files.rows import write_rows

DOCUMENTS = 1000 if FULL else 16
QUESTIONS = 200 if FULL else 6

if FULL:
    import pyarrow.parquet as pq

    def gsm8k(split: str) -> list[dict]:
        """The rows of a split."""
        file = f"main/{split}-00000-of-00001.parquet"
        return pq.read_table(hf_hub_download("openai/gsm8k", file, repo_type="dataset")).to_pylist()

    texts = [f"{row['question']}\n{row['answer']}" for row in gsm8k("train")[:DOCUMENTS]]
    write_rows(RUN / "documents.jsonl", ({"source": "gsm8k", "text": text} for text in texts))
    write_rows(RUN / "questions.jsonl", gsm8k("test")[:QUESTIONS])
else:
    from rationalyst_jax.world.corpus import documents, questions

    write_rows(RUN / "documents.jsonl", documents(0, DOCUMENTS))
    write_rows(RUN / "questions.jsonl", questions(0, QUESTIONS, "test"))

# %% [markdown]
# ## Mine
#
# A model of this size copies texts badly, so thoughts are inserted: the model is shown the text before a place, and writes what may
# stand there.

# %%
from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.pipeline.filter import filter_rationales
from rationalyst_jax.pipeline.mine import mine
from rationalyst_jax.pipeline.models import Models
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.report.progress import track, track_steps

prompts = load_prompts("llama3" if FULL else "world")
markers = () if FULL else ("<BOT>", "<|copy|>")  # the small model has read texts with thoughts in them
models = Models(EngineConfig())
console = Console()

annotate = AnnotateConfig(
    method="insert",
    places="line",
    candidates=3,
    max_rationale_tokens=64 if FULL else 32,
)
with track(console, "documents annotated") as progress:
    mined, _ = mine(
        RUN / "documents.jsonl", MODEL, models, prompts, annotate, RUN / "mine", progress=progress
    )
mined

# %% [markdown]
# ## Filter

# %%
kept = RUN / "mine" / "filtered.parquet"
judged = FilterConfig(tau=0.1, suppress=markers[:1], row_length=1024 if FULL else 512)
with track(console, "rationales scored") as progress:
    filtered, _ = filter_rationales(
        RUN / "mine" / "triples.parquet", MODEL, models, prompts, judged, kept, progress=progress
    )
print(f"{filtered.kept} of {filtered.rationales} kept")

# %% [markdown]
# ## Train adapters
#
# `rationalyst plan --preset colab-v5e-1 --config llama3.2-1b-train-1chip --model llama3.2-1b --hours 3` says whether this
# fits the chip, and how much of it fits into the time: an estimate. On a GPU without bfloat16 (T4, P100) take
# `dtype="float32"` and `microbatch_rows=1`.

# %%
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.pipeline.train import train
from rationalyst_jax.train.config import TrainConfig

settings = TrainConfig(
    epochs=2,
    steps=None if FULL else 6,
    batch_examples=32 if FULL else 8,
    row_length=1024 if FULL else 192,
    microbatch_rows=4,
    peak_learning_rate=2e-4 if FULL else 1e-3,
    dtype="bfloat16" if FULL else "float32",
    remat="dots",
    lora=LoraConfig(rank=16),
    save_every=50,
    validate_every=50,
)
with track_steps(console) as (progress, note):
    trained = train(kept, MODEL, models, prompts, settings, RUN / "train", progress=progress, note=note)
trained

# %% [markdown]
# ## Guided reasoning
#
# `likelihood` takes the step that the agent finds most likely; `implicit` the one that is most likely after the trained
# model's thought.

# %%
from rationalyst_jax.pipeline.evaluate import evaluate
from rationalyst_jax.pipeline.reason import Cast, reason
from rationalyst_jax.pipeline.report import report_traces
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.report.grades import compared_table, grades_table
from rationalyst_jax.report.notebook import PageFrame
from rationalyst_jax.tasks.benchmarks import task_named

task = task_named("gsm8k")
traces = {}
for strategy in ("likelihood", "implicit"):
    how = ReasonConfig(
        strategy=strategy,
        max_step_tokens=128 if FULL else 32,
        max_rationale_tokens=64 if FULL else 32,
        suppress=markers,
        block=64,
    )
    cast = Cast(MODEL, RUN / "train" / "hf" if strategy == "implicit" else None)
    traces[strategy] = [RUN / f"{strategy}.jsonl"]
    with track(console, f"questions ({strategy})") as progress:
        reason(
            RUN / "questions.jsonl", task, cast, models, prompts, how, traces[strategy][0], progress=progress
        )
models.close()

found = evaluate(task, RUN / "questions.jsonl", traces, ["likelihood"])
console.print(grades_table(task, {name: (one.accuracy, one.flexible) for name, one in found.items()}))
console.print(compared_table("likelihood", {"implicit": found["implicit"].versus["likelihood"]}))
report_traces(task, RUN / "questions.jsonl", traces, RUN / "report.html")
PageFrame(RUN / "report.html")

# %% [markdown]
# ## Back to Hugging Face
#
# `train/hf` is the model with its adapters merged, an ordinary checkpoint that `transformers` opens; `train/adapters` has the
# adapters alone, in PEFT's format. The model card says from what they were made.

# %%
from rationalyst_jax.pipeline.model_card import model_cards

[card] = model_cards(RUN / "train", licenses={})
print(card.read_text()[:1500])

# %% [markdown]
# To the Hub: the token needs the right to write, and Llama's licence wants "Llama" at the beginning of a derived model's
# name. Without a name here, the checkpoint is packed for a download instead.

# %%
HUB = None  # such as "you/Llama-3.2-1B-rationalyst"

if HUB is not None:
    from huggingface_hub import HfApi

    api = HfApi(token=token())
    api.create_repo(HUB, private=True, exist_ok=True)
    api.upload_folder(repo_id=HUB, folder_path=card.parent)
else:
    print(shutil.make_archive(str(RUN / "rationalyst"), "zip", card.parent))
