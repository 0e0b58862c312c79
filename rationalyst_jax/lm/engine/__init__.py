"""The generation engine: every prefix computed once, requests of all kinds in one batch."""
