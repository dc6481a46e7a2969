"""Where bytes are kept: one interface, several back ends, and encryption at rest over any of them.

Start at :mod:`~keybroker.storage.interface`; :func:`keybroker.storage.provider.open_storage` hands
out namespaces as the configuration says.
"""
