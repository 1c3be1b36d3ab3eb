"""The public verbs, one file each, and what several of them need."""
