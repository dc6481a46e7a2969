"""Certificate chains in a token's header: which endorse its key, and which do not."""

import base64
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from token_pki import Trust, certify, claims, header_with_jwk, pem, token, write, x5c

from keybroker.model.errors import TokenVerifierError
from keybroker.tokens.verifier import TokenVerifier

ROOT = certify("root")
LEAF = certify("leaf", ROOT, ca=False)


def chain_verifier(path: Path, *trusted: Any) -> TokenVerifier:
    return TokenVerifier(Trust(trusted_certs_paths=[write(path / "trusted.pem", pem(*trusted))]))


async def refused(verifier: TokenVerifier, forged: str) -> str:
    with pytest.raises(TokenVerifierError) as error:
        await verifier.verify(forged)
    assert error.value.status == 401
    assert error.value.detail == TokenVerifierError.default_detail
    return error.value.diagnostics()


_INTERMEDIATES = [certify("int-a", ROOT, path_length=1)]
_INTERMEDIATES.append(certify("int-b", _INTERMEDIATES[0], path_length=0))
DEEP_LEAF = certify("deep leaf", _INTERMEDIATES[1], ca=False)
DECOY = certify("decoy")
SELF_SIGNED = certify("self-signed", constraints=False)
OTHER_ROOT = certify("root")


@pytest.mark.parametrize(
    ("leaf", "chain", "trusted"),
    [
        (LEAF, [LEAF], [ROOT]),
        (LEAF, [LEAF, ROOT], [ROOT]),
        (LEAF, [LEAF], [DECOY, ROOT]),
        (LEAF, [LEAF], [OTHER_ROOT, ROOT]),
        (LEAF, [LEAF, OTHER_ROOT, ROOT], [ROOT]),
        (DEEP_LEAF, [DEEP_LEAF, *_INTERMEDIATES], [ROOT]),
        (DEEP_LEAF, [DEEP_LEAF, *reversed(_INTERMEDIATES), DECOY], [DECOY, ROOT]),
        (DEEP_LEAF, [DEEP_LEAF], [*_INTERMEDIATES, ROOT]),
        (DEEP_LEAF, [DEEP_LEAF], [_INTERMEDIATES[1]]),
        (DEEP_LEAF, [DEEP_LEAF, _INTERMEDIATES[1]], [_INTERMEDIATES[0]]),
        (SELF_SIGNED, [SELF_SIGNED], [SELF_SIGNED]),
        (LEAF, [LEAF], [LEAF]),
    ],
)
async def test_a_chain_to_a_trusted_certificate_endorses_the_key(
    tmp_path: Path, leaf: Any, chain: list[Any], trusted: list[Any]
):
    signed = token(leaf.key, header_with_jwk(leaf.key, x5c=x5c(*chain)))
    verified = await chain_verifier(tmp_path, *trusted).verify(signed)
    assert verified.expires_at <= leaf.certificate.not_valid_after_utc.timestamp()


def _bad_chains() -> dict[str, tuple[Any, list[Any], list[Any]]]:
    expired_root = certify("root", days=(-20, -10))
    expired_int = certify("int", ROOT, days=(-20, -10))
    no_ca = certify("no ca", ROOT, ca=False)
    no_constraints = certify("v1", ROOT, constraints=False)
    no_cert_sign = certify("no sign", ROOT, cert_sign=False)
    critical = certify("critical", ROOT, critical_unknown=True)
    tight = certify("tight", ROOT, path_length=0)
    below_tight = certify("below", tight)
    small = certify("small", key=rsa.generate_private_key(65537, 1024))
    deep = ROOT
    tower = []
    for level in range(8):
        deep = certify(f"level {level}", deep)
        tower.append(deep)

    def leaf(issuer: Any, **options: Any) -> Any:
        return certify("leaf", issuer, ca=False, **options)

    return {
        "other root": (made := leaf(DECOY), [made, DECOY], [ROOT]),
        "root of the same name": (made := leaf(OTHER_ROOT), [made, OTHER_ROOT], [ROOT]),
        "leaf expired": (made := leaf(ROOT, days=(-20, -10)), [made], [ROOT]),
        "leaf not yet valid": (made := leaf(ROOT, days=(1, 10)), [made], [ROOT]),
        "root expired": (made := leaf(expired_root), [made], [expired_root]),
        "intermediate expired": (made := leaf(expired_int), [made, expired_int], [ROOT]),
        "intermediate missing": (DEEP_LEAF, [DEEP_LEAF, _INTERMEDIATES[0]], [ROOT]),
        "issuer is no authority": (made := leaf(no_ca), [made, no_ca], [ROOT]),
        "issuer without constraints": (
            made := leaf(no_constraints),
            [made, no_constraints],
            [ROOT],
        ),
        "issuer may not sign": (made := leaf(no_cert_sign), [made, no_cert_sign], [ROOT]),
        "unknown critical extension": (made := leaf(critical), [made, critical], [ROOT]),
        "critical extension in the leaf": (
            made := leaf(ROOT, critical_unknown=True),
            [made],
            [ROOT],
        ),
        "path too long for the authority": (
            made := leaf(below_tight),
            [made, below_tight, tight],
            [ROOT],
        ),
        "path too long": (made := leaf(deep), [made, *tower], [ROOT]),
        "leaf not for signing": (made := leaf(ROOT, digital_signature=False), [made], [ROOT]),
        "weak root": (made := leaf(small), [made], [small]),
        "leaf of another key": (LEAF, [DEEP_LEAF, *_INTERMEDIATES], [ROOT]),
        "leaf not first": (LEAF, [ROOT, LEAF], [ROOT]),
    }


BAD_CHAINS = _bad_chains()


@pytest.mark.parametrize("case", BAD_CHAINS)
async def test_a_chain_with_a_fault_endorses_nothing(tmp_path: Path, case: str):
    leaf, chain, trusted = BAD_CHAINS[case]
    verifier = chain_verifier(tmp_path, *trusted)
    await refused(verifier, token(leaf.key, header_with_jwk(leaf.key, x5c=x5c(*chain))))


@pytest.mark.parametrize(
    "member",
    [
        None,
        [],
        "MII",
        [7],
        ["not base64"],
        [base64.b64encode(b"not a certificate").decode()],
        x5c(*[LEAF] * 11),
        {"0": x5c(LEAF)[0]},
    ],
)
async def test_a_malformed_x5c_endorses_nothing(tmp_path: Path, member: Any):
    verifier = chain_verifier(tmp_path, ROOT)
    await refused(verifier, token(LEAF.key, header_with_jwk(LEAF.key, x5c=member)))


async def test_a_swapped_jwk_under_a_good_chain_is_refused(tmp_path: Path):
    attacker = ec.generate_private_key(ec.SECP256R1())
    forged = token(attacker, header_with_jwk(attacker, x5c=x5c(LEAF)))
    assert "first certificate" in await refused(chain_verifier(tmp_path, ROOT), forged)


async def test_a_token_ends_with_the_chain_that_endorses_it(tmp_path: Path):
    leaf = certify("leaf", ROOT, ca=False, days=(-1, 10))
    signed = token(
        leaf.key, header_with_jwk(leaf.key, x5c=x5c(leaf)), claims(exp=int(time.time()) + 10**9)
    )
    verified = await chain_verifier(tmp_path, ROOT).verify(signed)
    assert verified.expires_at == leaf.certificate.not_valid_after_utc.timestamp()


async def test_a_chain_with_a_broken_hash_is_refused(tmp_path: Path):
    root = certify("root")
    leaf = certify("leaf", root, ca=False, hash_=hashes.SHA224())
    signed = token(leaf.key, header_with_jwk(leaf.key, x5c=x5c(leaf)))
    assert "hash" in await refused(chain_verifier(tmp_path, root), signed)
