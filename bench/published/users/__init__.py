"""What the user of each published model writes: `load` makes the module, `example` its arguments.

A file here has only what such a user needs, since the benchmark counts its lines.
"""
