"""The pipeline: stages, the one loop, checkpoints, and what a run leaves behind."""
