"""Serves trained LSTMs with memory."""
