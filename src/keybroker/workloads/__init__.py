"""Registered workloads: who may get which passphrase, by launch measurement, for SEV and SEV-SNP.

The relying party of the registered-workload API (reference-kbs). An operator registers a workload
with its launch measurement, TEE configuration and passphrase; the workload authenticates, attests
and fetches its key. Verification is :mod:`keybroker.verifiers`; the HTTP face is
:mod:`keybroker.api.workload`.
"""
