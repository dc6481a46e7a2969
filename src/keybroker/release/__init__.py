"""The last step of a secret: sealed so that only the attested TEE can read it."""
