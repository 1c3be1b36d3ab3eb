"""Quantization that formats share: ranges of activations, estimated from calibration data."""
