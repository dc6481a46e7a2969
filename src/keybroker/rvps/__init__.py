"""Reference values: what good evidence looks like, by name.

They come in by message (:mod:`keybroker.rvps.message`), an extractor reads the values out of its
payload, and attestation policies ask for them with ``query_reference_value(name)``.
"""
