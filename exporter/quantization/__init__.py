"""Quantization that formats share: ranges, integer schemes and gauges."""
