"""The linear algebra of low rank: SVD, moments, truncation."""
