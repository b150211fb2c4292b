"""Finds what forward() takes and gives: inputs, states and outputs, with their axes."""
