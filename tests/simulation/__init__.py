"""The deterministic simulation: real engines and servicers, with a fake clock, network and kernel.

The store is fake, too; all fakes are handed in by constructors.
"""
