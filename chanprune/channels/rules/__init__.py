"""What each call does with channels."""
