"""llama.cpp on a GGUF file, as the tests ask it: tokens of texts and greedy continuations.

    PYTHON tests/llama_cpp.py FILE.gguf < request.json > answer.json

PYTHON is one with the packages llama-cpp-cffi and cffi, which the tests' own need not be; nothing of this
project is imported. The request has `texts`, `prompts` (token ids each) and `length`. The answer has
`tokens`, the texts as the file's tokenizer has them, with what it puts before a text; and `continuations`,
the token ids that follow the prompts, each the most likely, in float32. An end is the last of one.
"""

import json
import sys
from typing import Any

from llama.llama_cpp import ffi, lib  # pyright: ignore[reportMissingImports]


def main(file: str, request: dict[str, Any]) -> dict[str, Any]:
    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(file.encode(), parameters)
    if model == ffi.NULL:
        sys.exit(f"llama.cpp does not load {file}")
    vocabulary = lib.llama_model_get_vocab(model)
    return {
        "tokens": [tokens(vocabulary, text) for text in request["texts"]],
        "continuations": [greedy(model, vocabulary, ids, request["length"]) for ids in request["prompts"]],
    }


def tokens(vocabulary: Any, text: str) -> list[int]:
    data = text.encode()
    room = len(data) + 8
    found = ffi.new("llama_token[]", room)
    count = lib.llama_tokenize(vocabulary, data, len(data), found, room, True, True)
    return [found[i] for i in range(count)]


def greedy(model: Any, vocabulary: Any, prompt: list[int], length: int) -> list[int]:
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = len(prompt) + length
    parameters.n_threads = parameters.n_threads_batch = 1  # more would wait for each other on a busy machine
    parameters.type_k = parameters.type_v = lib.GGML_TYPE_F32
    context = lib.llama_init_from_model(model, parameters)
    size = lib.llama_vocab_n_tokens(vocabulary)
    written = []
    given = prompt
    while len(written) < length and not (written and lib.llama_vocab_is_eog(vocabulary, written[-1])):
        ids = ffi.new("llama_token[]", given)
        if lib.llama_decode(context, lib.llama_batch_get_one(ids, len(given))) != 0:
            sys.exit("llama.cpp does not decode")
        logits = ffi.unpack(lib.llama_get_logits_ith(context, -1), size)
        written.append(max(range(size), key=logits.__getitem__))
        given = written[-1:]
    lib.llama_free(context)
    return written


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.load(sys.stdin))))
