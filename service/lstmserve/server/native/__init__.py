"""The contract's own dialect, lstmserve.v1: a method's message in, the engine, a message out."""
