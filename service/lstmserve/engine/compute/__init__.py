"""What computes: device, state pool, and the onnxruntime calls on it. Knows no session, no step."""
