"""Runs at many ranks, and what to choose among their artifacts."""
