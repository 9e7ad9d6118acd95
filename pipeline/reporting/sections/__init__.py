"""What single sections of a report say, and their tables."""
