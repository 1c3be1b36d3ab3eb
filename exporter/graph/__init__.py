"""All that this package knows of Keras models."""
