"""Who may come in, as whom, and over which encryption."""
