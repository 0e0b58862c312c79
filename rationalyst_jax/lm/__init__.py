"""The language-model machine: Llama, token trees, likelihood, generation; it knows nothing of rationales."""
