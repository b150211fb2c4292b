"""Finds by experiments how the tensors lie in the time steps of sessions."""
