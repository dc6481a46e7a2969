"""Rego policies: compiled once, evaluated many times, explained to the administrator.

A policy is a Rego module of ``package policy``. :mod:`keybroker.policy.store` keeps policies,
:mod:`keybroker.policy.engine` compiles and evaluates them, :mod:`keybroker.policy.explain` says
which expression of which rule did not hold. ``docs/policies.md`` is written for policy authors.
"""
