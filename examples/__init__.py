"""Makes `python -m examples.weather.demo` work from a clone. It is not installed."""
