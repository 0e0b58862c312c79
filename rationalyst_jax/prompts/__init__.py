"""Prompts as data (the YAML files here), and the one function that renders them."""
