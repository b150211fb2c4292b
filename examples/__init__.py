"""Owns nothing: makes `python -m examples.weather.demo` work from a clone. Not installed."""
