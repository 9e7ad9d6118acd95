"""The shortcut audit: what tells the label without a look at a pixel."""
