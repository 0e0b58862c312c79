"""How every stage reads and writes: JSON lines, files whole or not there, settings that must agree."""
