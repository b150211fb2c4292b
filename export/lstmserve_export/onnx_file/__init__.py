"""Turns an ONNX model that others made into a model of ours, and proves it."""
