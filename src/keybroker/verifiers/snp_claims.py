"""The claims of SEV-SNP evidence.

The names and encodings of the first group are those of Trustee's claims page; byte strings are in
lower-case hexadecimal throughout, TCB parts are numbers, bits are booleans. ``init_data`` is the
report's host data.
"""

from typing import Any

from keybroker.verifiers.snp_chain import EndorsementKey
from keybroker.verifiers.snp_report import SnpReport, Tcb

#: Bits of the guest policy by claim, AMD 56860 section 4.3.
_POLICY_BITS = {
    "policy_smt_allowed": 16,
    "policy_migrate_ma": 18,
    "policy_debug_allowed": 19,
    "policy_single_socket": 20,
    "policy_cxl_allowed": 21,
    "policy_mem_aes_256_xts": 22,
    "policy_rapl_disabled": 23,
    "policy_ciphertext_hiding": 24,
    "policy_page_swap_disabled": 25,
}

#: Bits of the platform info by claim, AMD 56860 section 7.3.
_PLATFORM_BITS = {
    "platform_smt_enabled": 0,
    "platform_tsme_enabled": 1,
    "platform_ecc_enabled": 2,
    "platform_rapl_disabled": 3,
    "platform_ciphertext_hiding_enabled": 4,
    "platform_alias_check_complete": 5,
    "platform_tio_enabled": 7,
}


def snp_claims(report: SnpReport, endorsement: EndorsementKey) -> dict[str, Any]:
    """Return the claims of a report that verified under an endorsement key.

    Beside Trustee's claims there are:

    - ``version``, ``vmpl``, ``guest_svn``: numbers of the report
    - ``family_id``, ``image_id``, ``id_key_digest``, ``author_key_digest``, ``report_id``,
      ``report_id_ma``: as in the report; ``author_key_enabled``: whether the digest counts
    - ``policy_*``, ``platform_*``: the further bits of the guest policy and the platform info
    - ``reported_tcb_fmc`` (Turin), and ``current_tcb_*``, ``committed_tcb_*``, ``launch_tcb_*``
    - ``current_version``, ``committed_version``: of the SNP firmware, ``major.minor.build``
    - ``launch_mit_vector``, ``current_mit_vector``: 8 bytes, most significant first (version 5)
    - ``processor``: ``Milan``, ``Genoa`` or ``Turin``; ``cpuid_family``, ``cpuid_model``,
      ``cpuid_stepping`` (from version 3)
    - ``vek_type``: ``vcek`` or ``vlek``; ``vlek_provider``: whom the VLEK was given to
    - ``root_sha256``, ``root_is_amd``: the root that the certificate chain ends in
    """
    claims: dict[str, Any] = {
        "policy_abi_major": report.policy >> 8 & 0xFF,
        "policy_abi_minor": report.policy & 0xFF,
        "measurement": report.measurement.hex(),
        "report_data": report.report_data.hex(),
        "init_data": report.host_data.hex(),
        "chip_id": report.chip_id.hex(),
        "version": report.version,
        "vmpl": report.vmpl,
        "guest_svn": report.guest_svn,
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "author_key_enabled": bool(report.key_info & 1),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "current_version": str(report.current_version),
        "committed_version": str(report.committed_version),
        "processor": str(report.generation),
        "vek_type": str(endorsement.kind),
        "root_sha256": endorsement.root_sha256,
        "root_is_amd": endorsement.amd_root,
    }
    for name, bit in _POLICY_BITS.items():
        claims[name] = bool(report.policy >> bit & 1)
    for name, bit in _PLATFORM_BITS.items():
        claims[name] = bool(report.platform_info >> bit & 1)
    _add_tcb(claims, "reported_tcb", report.reported_tcb)
    _add_tcb(claims, "current_tcb", report.current_tcb)
    _add_tcb(claims, "committed_tcb", report.committed_tcb)
    _add_tcb(claims, "launch_tcb", report.launch_tcb)
    if report.cpuid is not None:
        claims["cpuid_family"], claims["cpuid_model"], claims["cpuid_stepping"] = report.cpuid
    if report.launch_mitigations is not None and report.current_mitigations is not None:
        claims["launch_mit_vector"] = f"{report.launch_mitigations:016x}"
        claims["current_mit_vector"] = f"{report.current_mitigations:016x}"
    if endorsement.provider is not None:
        claims["vlek_provider"] = endorsement.provider
    return claims


def _add_tcb(claims: dict[str, Any], name: str, tcb: Tcb) -> None:
    claims[f"{name}_bootloader"] = tcb.bootloader
    claims[f"{name}_tee"] = tcb.tee
    claims[f"{name}_snp"] = tcb.snp
    claims[f"{name}_microcode"] = tcb.microcode
    if tcb.fmc is not None:
        claims[f"{name}_fmc"] = tcb.fmc
