"""Measures a key broker over the network: `python -m benchmarks --help`."""
