"""Owns the client on an event loop, written by hand; _sync is generated from it (`make proto`)."""
