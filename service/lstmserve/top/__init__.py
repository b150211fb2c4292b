"""A server's numbers in a terminal: read from its metrics address, compared, drawn."""
