"""attestation_service"""
