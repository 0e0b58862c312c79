"""Token trees, and log-probabilities and likelihoods on them."""
