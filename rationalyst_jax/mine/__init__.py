"""Rationales from unlabeled text: annotate, check fidelity, cut into triples, filter by likelihood."""
