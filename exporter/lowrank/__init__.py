"""The mathematics: truncated SVDs, factors of layers, rank policies, graph surgery."""
