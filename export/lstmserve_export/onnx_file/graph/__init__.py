"""Writes the graph that the server runs."""
