"""The file's own answers, and the proof that the served graph gives them."""
