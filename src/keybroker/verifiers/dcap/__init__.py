"""Intel DCAP: quotes of TDX and SGX, verified with the collateral that Intel publishes.

    quote ──parse_quote──▶ Quote ──▶ PCK certificate ──▶ FMSPC, CA ──▶ collateral
                             │                                            │ (cache, PCS or PCCS,
                             ▼                                            ▼  or a folder)
                        verify_quote(quote, verified collateral, moment) ──▶ QuoteVerdict ──▶ claims

Modules: :mod:`~keybroker.verifiers.dcap.quote` (the bytes),
:mod:`~keybroker.verifiers.dcap.pck` (the platform's certificate),
:mod:`~keybroker.verifiers.dcap.collateral` (its form, and its signatures),
:mod:`~keybroker.verifiers.dcap.tcb` (which TCB level a platform has),
:mod:`~keybroker.verifiers.dcap.verification` (all of it together),
:mod:`~keybroker.verifiers.dcap.claims` (what it shows),
:mod:`~keybroker.verifiers.dcap.pcs`, :mod:`~keybroker.verifiers.dcap.offline` (where collateral
comes from), :mod:`~keybroker.verifiers.dcap.cache` (where it is kept) and
:mod:`~keybroker.verifiers.dcap.endorser` (what the verifiers of TDX and SGX ask for it).
"""
