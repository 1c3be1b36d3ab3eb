"""Proof: parity with the Keras model, structure of the artifact, cost of the compression."""
