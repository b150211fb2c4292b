"""The deterministic simulation: real engines and servicers; only clock, network, store and kernel
are fakes, handed in by constructor.
"""
