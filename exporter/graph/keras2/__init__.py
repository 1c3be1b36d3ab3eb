"""Reads what Keras 2 (TensorFlow up to 2.15) wrote; Keras 3 reads only a part of that."""
