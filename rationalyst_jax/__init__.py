"""RATIONALYST in JAX: mine rationales from unlabeled text, train a model on them, let it guide reasoning."""
