"""A format that NumPy runs, and a layer of its own that is factorized."""
