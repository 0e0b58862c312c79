"""Checkpoints: Hugging Face, PEFT, Orbax, tokenizers; parameters brought to their devices and back."""
