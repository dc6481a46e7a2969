"""Software TEEs: complete, properly signed evidence under a root that nobody trusts unless told to.

For tests, demonstrations and benchmarks. A platform made here behaves as the hardware does, byte by
byte, and can be told to misbehave in one exact way. Its root has to be named in the broker's
configuration before anything it signs counts, and the broker says so in its log.

:mod:`keybroker.softtee.snp` is AMD SEV-SNP, :mod:`keybroker.softtee.kds` AMD's key distribution
service for it::

    platform = SoftwareSnpPlatform.create("Genoa")
    Path("root.pem").write_bytes(platform.root_pem())
    evidence = platform.evidence(report_data=digest)
"""
