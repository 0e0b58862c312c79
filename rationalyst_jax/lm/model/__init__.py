"""The model: its configuration, Llama, adapters, eight-bit weights, operations."""
