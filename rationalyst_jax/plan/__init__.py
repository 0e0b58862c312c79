"""What a stage would take: programs compiled for machines that are not here, and mining counted."""
