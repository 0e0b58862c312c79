"""The language-model machine: Llama, token trees, likelihood, generation."""
