"""The client on an event loop, written by hand. `make proto` generates _sync from it."""
