"""The Vision Transformer, its weights, and what it attends to."""
