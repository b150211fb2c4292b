"""Which work runs next, in which batch, and what a batch's end changes. No clock, no I/O."""
