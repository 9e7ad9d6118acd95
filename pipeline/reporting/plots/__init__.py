"""Drawings for reports, as inline SVG."""
