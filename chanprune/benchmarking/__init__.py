"""What a run saved, in time and memory: its network beside the whole one, measured."""
