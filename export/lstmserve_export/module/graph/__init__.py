"""Makes the step graph: traces one time step, and puts ONNX in place of the recurrent calls."""
