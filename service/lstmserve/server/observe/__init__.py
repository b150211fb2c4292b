"""What an operator sees: metrics, probes, the status page, logs."""
