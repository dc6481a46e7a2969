"""Attestation tokens: signed by this broker's attestation service, verified for every request."""
