"""Removes output channels of layers, and what depends on them."""
