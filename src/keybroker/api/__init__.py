"""The HTTP faces.

They decode a request, walk the way of a secret, and encode the answer; none of them verifies,
decides or encrypts by itself. A further face is a folder beside :mod:`keybroker.api.kbs_v0` and
one line in :mod:`keybroker.api.app`.
"""
