"""The relying party: sessions, administrators, plugins and the decision to release.

:class:`keybroker.kbs.broker.Broker` is the room's one entry. It walks the way of a secret: open
the session or verify the token, decide by policy, ask the plugin, seal the answer to the TEE.
"""
