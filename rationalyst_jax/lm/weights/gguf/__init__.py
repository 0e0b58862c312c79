"""Llama checkpoints in GGUF, the format of llama.cpp: a file with weights, sizes and tokenizer in one."""
