"""What is served below ``/kbs/v0/<plugin>/…``.

:mod:`keybroker.kbs.plugins.interface` says what a plugin is,
:mod:`keybroker.kbs.plugins.registry` makes those that a configuration names.
"""
