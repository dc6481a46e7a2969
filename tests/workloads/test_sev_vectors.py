"""The broker's half of an SEV launch against vectors that others published.

The vectors are those of the Rust crate ``sev`` (1.1.0, ``src/session/key.rs`` and
``src/session/mod.rs``), the reference for guest owners; AMD 55766 itself prints none. The layout of
the certificate is held against a challenge recorded in the crate ``kbs-types`` 0.2.0
(``testdata/sev_challenge.json``).
"""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from keybroker.model.errors import EvidenceError
from keybroker.workloads.sev_launch import (
    Build,
    LaunchMeasurement,
    TransportKeys,
    derive_key,
    encode_diffie_hellman_certificate,
    issue_launch_start,
    measurement_mac,
    seal_launch_secret,
    seal_transport_keys,
    verify_measurement,
)
from keybroker.workloads.sev_policy import SevPolicy, SevPolicyFlags, decode_policy

NO_POLICY = SevPolicy(SevPolicyFlags(0))
TIK = bytes.fromhex("66320db73158a35a255d051758e95ed4")
EMPTY_DIGEST = hashlib.sha256().digest()
MEASUREMENT = LaunchMeasurement(
    measure=bytes.fromhex("6faab2daae389bcd3405a05d6cafe33c0414f7bedd0bae19ba5f38b7fd1664ea"),
    nonce=bytes.fromhex("4fbe0bedbad6c86ae8f68971d103e554"),
)
BUILD = Build(0, 0x12, 0x0F)


def test_the_master_secret_is_derived_as_published() -> None:
    derived = derive_key(bytes(16), "sev-master-secret", bytes(16))
    assert derived == bytes.fromhex("ab4d269fcc62bedb4511d56c386ce706")


def test_the_session_block_is_the_published_one() -> None:
    session = seal_transport_keys(
        TransportKeys(bytes(16), bytes(16)),
        NO_POLICY,
        shared_secret=bytes(16),
        nonce=bytes(16),
        iv=bytes(16),
    )
    assert session.nonce == session.wrap_iv == bytes(16)
    assert session.wrap_tk == bytes.fromhex(
        "2137bc7f9bb8bd7c3e55a576a15d3454b3856b8ba27afadf46dcfee9f02c02c4"
    )
    assert session.wrap_mac == bytes.fromhex(
        "3176c0752738bd9d5e86689534020f528c088f16238826b000b327dee6aeed7d"
    )
    assert session.policy_mac == bytes.fromhex(
        "aa7855e13839dd767cd5da7c1ff5036540c9264b7a803029315e55375287b4af"
    )


def test_the_published_measurement_is_accepted() -> None:
    keys = TransportKeys(bytes(16), TIK)
    assert verify_measurement(keys, BUILD, NO_POLICY, EMPTY_DIGEST, MEASUREMENT) is MEASUREMENT


@pytest.mark.parametrize("bit", range(0, 48 * 8, 7))
def test_a_flipped_bit_of_the_measurement_is_refused(bit: int) -> None:
    raw = bytearray(MEASUREMENT.measure + MEASUREMENT.nonce)
    raw[bit // 8] ^= 1 << bit % 8
    changed = LaunchMeasurement(bytes(raw[:32]), bytes(raw[32:]))
    with pytest.raises(EvidenceError):
        verify_measurement(TransportKeys(bytes(16), TIK), BUILD, NO_POLICY, EMPTY_DIGEST, changed)


@pytest.mark.parametrize(
    ("build", "policy", "digest"),
    [
        (Build(0, 0x12, 0x10), NO_POLICY, EMPTY_DIGEST),
        (Build(0, 0x13, 0x0F), NO_POLICY, EMPTY_DIGEST),
        (Build(1, 0x12, 0x0F), NO_POLICY, EMPTY_DIGEST),
        (BUILD, SevPolicy(SevPolicyFlags.NO_DEBUG), EMPTY_DIGEST),
        (BUILD, SevPolicy(SevPolicyFlags(0), (0, 1)), EMPTY_DIGEST),
        (BUILD, NO_POLICY, hashlib.sha256(b"another kernel").digest()),
    ],
)
def test_everything_that_the_measurement_covers_counts(
    build: Build, policy: SevPolicy, digest: bytes
) -> None:
    with pytest.raises(EvidenceError):
        verify_measurement(TransportKeys(bytes(16), TIK), build, policy, digest, MEASUREMENT)


def test_the_derivation_is_that_of_sp_800_108_where_byte_order_does_not_tell() -> None:
    """With byte-swapped counter and length the general KDF of OpenSSL gives the same key."""
    label, context = b"sev-kek", b""
    length = (128).to_bytes(4, "little")
    fixed = label + b"\0" + context + length
    general = KBKDFHMAC(
        algorithm=hashes.SHA256(),
        mode=Mode.CounterMode,
        length=16,
        rlen=1,
        llen=None,
        location=CounterLocation.BeforeFixed,
        label=None,
        context=None,
        fixed=b"\0\0\0" + fixed,  # a counter of one byte, then the other three of a little-endian
    ).derive(bytes(range(16)))
    assert derive_key(bytes(range(16)), "sev-kek") == general


def test_the_certificate_of_the_broker_has_the_recorded_layout() -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    certificate = encode_diffie_hellman_certificate(key)
    assert len(certificate) == 2084
    # version 1, API 0.0, reserved, usage PDH, algorithm ECDH with SHA-256, curve P-384
    assert certificate[:20] == bytes.fromhex("0100000000000000031000000300000002000000")
    x = int.from_bytes(certificate[20:92], "little")
    y = int.from_bytes(certificate[92:164], "little")
    assert (x, y) == (key.public_numbers().x, key.public_numbers().y)
    unused = bytes.fromhex("0010000000000000") + bytes(512)
    assert certificate[164:] == bytes(1044 - 164) + unused + unused


def test_the_launch_secret_is_covered_by_its_mac_as_the_specification_says() -> None:
    keys = TransportKeys(bytes(range(16)), TIK)
    packet = seal_launch_secret(keys, b"passphrase", MEASUREMENT.measure, iv=bytes(16))
    assert len(packet.ciphertext) == 512
    length = (512).to_bytes(4, "little")
    covered = b"\x01" + bytes(4) + bytes(16) + length + length + packet.ciphertext
    assert packet.mac == hmac.digest(TIK, covered + MEASUREMENT.measure, "sha256")


def test_a_secret_longer_than_the_packet_is_refused() -> None:
    keys = TransportKeys.generate()
    assert len(seal_launch_secret(keys, b"x" * 512, bytes(32)).ciphertext) == 512
    with pytest.raises(ValueError, match="at most 512"):
        seal_launch_secret(keys, b"x" * 513, bytes(32))


def test_each_launch_and_each_packet_is_under_keys_and_vectors_of_its_own() -> None:
    peer = ec.generate_private_key(ec.SECP384R1()).public_key()
    starts = [issue_launch_start(peer, NO_POLICY) for _ in range(4)]
    assert len({start.session.nonce for start, _ in starts}) == 4
    assert len({start.session.wrap_iv for start, _ in starts}) == 4
    assert len({start.certificate for start, _ in starts}) == 4
    assert len({keys.tek for _, keys in starts} | {keys.tik for _, keys in starts}) == 8
    keys = starts[0][1]
    assert len({seal_launch_secret(keys, b"p", bytes(32)).iv for _ in range(4)}) == 4


def test_keys_are_in_no_repr() -> None:
    keys = TransportKeys(b"E" * 16, b"I" * 16)
    assert "EEE" not in repr(keys)
    assert "III" not in repr(keys)
    start, _ = issue_launch_start(ec.generate_private_key(ec.SECP384R1()).public_key(), NO_POLICY)
    assert "wrap_tk" not in repr(start)


@pytest.mark.parametrize("flags", [0, 1, 0x3B, 0x3F])
def test_a_policy_survives_its_four_bytes(flags: int) -> None:
    policy = SevPolicy(SevPolicyFlags(flags), (1, 49))
    assert policy.encode() == bytes((flags, 0, 1, 49))
    assert decode_policy(policy.encode()) == policy


def test_the_measurement_mac_begins_with_its_own_byte() -> None:
    covered = b"\x04" + bytes((0, 0x12, 0x0F)) + bytes(4) + EMPTY_DIGEST + MEASUREMENT.nonce
    assert measurement_mac(TIK, BUILD, NO_POLICY, EMPTY_DIGEST, MEASUREMENT.nonce) == hmac.digest(
        TIK, covered, "sha256"
    )
