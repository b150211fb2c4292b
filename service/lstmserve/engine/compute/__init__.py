"""Device, state pool, and the onnxruntime calls on it. Knows no session and no step."""
