"""EAT Attestation Results: an appraisal of every device, as the claims of a token.

Each device's appraisal is a submodule (``cpu0``, ``gpu0``, ``gpu1``): a vector of trust claims, and
the status that follows from them.

Specification: draft-ietf-rats-ear (names, submodules), draft-ietf-rats-ar4si section 2.3 (trust
claims and tiers).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from keybroker.model.errors import PolicyEngineError

#: Trust claims that a policy can make, in the order of their numbers.
TRUST_CLAIMS = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)

#: Tiers from best to worst; the status of a device is the worst tier of its trust claims.
TIERS = ("none", "affirming", "warning", "contraindicated")

#: Members of an appraisal that a policy's extension must not replace.
_OWN_MEMBERS = frozenset(
    {
        "ear.status",
        "ear.trustworthiness-vector",
        "ear.appraisal-policy-id",
        "ear.veraison.annotated-evidence",
        "ear.veraison.policy-claims",
        "ear.veraison.key-attestation",
    }
)

_INT32 = range(-(2**31), 2**31)
_INT8 = range(-128, 128)


def tier(value: int) -> str:
    """Return the tier of a trust claim's value (-128 to 127)."""
    if -1 <= value <= 1:
        return "none"
    if -32 <= value < 32:
        return "affirming"
    if -96 <= value < 96:
        return "warning"
    return "contraindicated"


def parse_trust_claims(value: Any) -> dict[str, int]:
    """Read what a policy gave as ``trust_claims``.

    Raises:
        PolicyEngineError: not an object, no claim at all, a name that is no trust claim, or a
            value that is not an integer of -128 to 127.
    """
    if not isinstance(value, Mapping):
        raise PolicyEngineError("trust_claims is not an object")
    for name, claim in value.items():
        if name not in TRUST_CLAIMS:
            raise PolicyEngineError(f"{name!r} is not a trust claim")
        if type(claim) is not int or claim not in _INT8:
            raise PolicyEngineError(f"trust claim {name} is not an integer of -128 to 127")
    if not value:
        raise PolicyEngineError("trust_claims makes no claim")
    return {name: value[name] for name in TRUST_CLAIMS if name in value}


def parse_extensions(value: Any) -> dict[str, Any]:
    """Read what a policy gave as ``extensions``: a list of ``name``, ``key`` and ``value``.

    Returns:
        Values by name; extensions whose value is null are left out.

    Raises:
        PolicyEngineError: not such a list, a name or key twice, or a name that is taken.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise PolicyEngineError("extensions is not a list")
    extensions: dict[str, Any] = {}
    keys: set[int] = set()
    for entry in value:
        if not isinstance(entry, Mapping) or "value" not in entry:
            raise PolicyEngineError("an extension must have name, key and value")
        name, key = entry.get("name"), entry.get("key")
        if not isinstance(name, str) or type(key) is not int or key not in _INT32:
            raise PolicyEngineError("an extension's name is text and its key a 32-bit integer")
        if name in extensions or key in keys or name in _OWN_MEMBERS:
            raise PolicyEngineError(f"the extension {name!r} or its key {key} is taken already")
        extensions[name] = entry["value"]
        keys.add(key)
    return {name: content for name, content in extensions.items() if content is not None}


def appraisal(
    trust_claims: Mapping[str, int],
    extensions: Mapping[str, Any],
    annotated_evidence: Mapping[str, Any],
    policy_id: str,
) -> dict[str, Any]:
    """Return the submodule of one device."""
    worst = max((TIERS.index(tier(value)) for value in trust_claims.values()), default=0)
    return {
        "ear.status": TIERS[worst],
        "ear.trustworthiness-vector": dict(trust_claims),
        "ear.appraisal-policy-id": policy_id,
        "ear.veraison.annotated-evidence": dict(annotated_evidence),
        **extensions,
    }


def annotate(
    tee: str, claims: Mapping[str, Any], init_data: Any, runtime_data: Any, *, verbose: bool
) -> dict[str, Any]:
    """Arrange a device's verified claims as policies and relying parties find them.

    What the evidence holds of init-data and report data stands beside what was hashed into it;
    all else stands under the name of the TEE.

    Args:
        tee: kind of the TEE.
        claims: what the verifier found.
        init_data: claims of the init-data that the evidence binds, or None.
        runtime_data: the runtime data that the evidence binds, or None.
        verbose: keep the evidence of additional devices in the runtime data. It can be large, and
            tokens travel in HTTP headers.
    """
    own = dict(claims)
    annotated: dict[str, Any] = {}
    if "init_data" in own:
        annotated["init_data"] = own.pop("init_data")
        annotated["init_data_claims"] = init_data
    if "report_data" in own:
        annotated["report_data"] = own.pop("report_data")
        if not verbose and isinstance(runtime_data, Mapping):
            runtime_data = {
                name: member
                for name, member in runtime_data.items()
                if name != "additional-evidence"
            }
        annotated["runtime_data_claims"] = runtime_data
    annotated[tee] = own
    return annotated
