"""What is decided: pure, total, and of the standard library only."""
