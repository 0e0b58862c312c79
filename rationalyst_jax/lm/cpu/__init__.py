"""What a CPU computes with code of our own."""
