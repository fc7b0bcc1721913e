"""Fine-tunes a small language model, proves the exported files and publishes them as a run."""
