"""The client for threads, generated from _async by `make proto`: edit that."""
