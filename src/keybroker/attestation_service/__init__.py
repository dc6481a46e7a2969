"""The attestation service: evidence in, a signed appraisal out.

:mod:`~keybroker.attestation_service.service` walks the way: verifiers turn evidence into claims,
a policy of the device's class turns claims and reference values into trust claims, and the
signer makes an EAT Attestation Result (EAR) of them.
"""
