"""What becomes of networks that nobody here chose: traced, pruned, proven, or refused by name."""
