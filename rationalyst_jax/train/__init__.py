"""Fine-tuning: rationales become token trees, packed batches, optimizer steps and checkpoints."""
