"""The order of steps: what waits, what runs together, what settles. Pure; knows no store."""
