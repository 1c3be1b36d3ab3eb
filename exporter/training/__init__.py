"""Training that knows of the compression: at the truncation, or of the factors themselves."""
