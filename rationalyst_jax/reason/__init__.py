"""Guided reasoning: an agent proposes steps, a supervision strategy chooses, the loop ends in an answer."""
