"""LiteRT flatbuffers, and the C source that holds one for microcontrollers."""
