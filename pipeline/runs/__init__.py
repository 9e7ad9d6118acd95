"""A run: its recipe, its folder, and what it has recorded."""
