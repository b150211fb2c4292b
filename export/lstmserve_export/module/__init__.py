"""A user's module as it is becomes a model that streams: of kind "network", or "lstm" if it is one.

1. load/ reads the user's file, the weights and the example (the command line alone).
2. forward.py makes the module a function from flat, named tensors to flat, named ones.
3. signature/ finds inputs, outputs, states and axes, by runs on changed sizes.
4. graph/ traces one time step, or a window of them; recurrent.py says which calls become nodes of
   ONNX there.
5. graph/recognise.py tells whether that is head(lstm(x)), which has a graph of its own.
6. proof/ streams that as the server runs it, and compares it with forward() on every prefix, or on
   every window.
7. export.py takes these steps in order, and writes the folder.
"""
