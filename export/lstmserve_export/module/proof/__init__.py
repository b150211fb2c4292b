"""Compares the exported step, as the server runs it, with forward(), and says why it differs."""
