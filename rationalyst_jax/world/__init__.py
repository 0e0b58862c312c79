"""The embedded synthetic world: word problems, noisy solutions, and the small base model that read them."""
