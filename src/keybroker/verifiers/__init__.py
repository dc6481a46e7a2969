"""Verification of evidence, one module a TEE.

:mod:`keybroker.verifiers.interface` says what a verifier is; :mod:`keybroker.verifiers.registry`
makes those that a configuration names.
"""
