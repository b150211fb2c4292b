"""Kind "lstm": y = head(lstm(x)), read from a checkpoint or taken from live modules."""
