"""Pruning in a training loop of one's own: what `import chanprune` offers."""
