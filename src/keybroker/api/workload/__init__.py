"""The face of registered workloads: the API of reference-kbs, below a prefix or on its own port."""
