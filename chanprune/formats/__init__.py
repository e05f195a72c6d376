"""Files of a network for runtimes that need none of this package's code; one module per format.

Each has `write`, which takes a network of one input (N, C, H, W) and one output, and `opened`,
which runs such a file.
"""
