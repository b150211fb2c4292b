"""The server: everything between the engine and the outside world."""
