"""OpenAPI documents: the contracts that the faces are held to."""
