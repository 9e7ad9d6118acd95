"""From an image file to a square image, stage by stage."""
