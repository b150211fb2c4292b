"""Reads the file, and refuses what a server must not run."""
