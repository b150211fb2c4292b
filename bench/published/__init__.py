"""Serves models that others published, and compares each with its own runtime."""
