"""ONNX models, and the ORT format that ONNX Runtime derives from them."""
