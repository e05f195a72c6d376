"""What a run leaves: its directory, and the schemas of its files."""
