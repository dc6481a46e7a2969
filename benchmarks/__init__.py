"""Measures a key broker over the network: ``python -m benchmarks --help``.

It speaks the protocol to any broker's URL, or starts one for the purpose. What counts is the
server's CPU time for each operation, beside that of the bare cryptography of the same operation in
the same run: wall time on a machine that does other things meanwhile is noise.
"""
