"""Background mode: from a nonce and evidence to verified claims, by whom they are appraised.

With Trust Authority the nonce is its own and its token holds the claims. Without it the nonce is
ours, and the broker's attestation service verifies and appraises as it does for ``/kbs/v0``.

What evidence must bind is the same in both cases: a digest of the nonce's value, the nonce's time
and the user data, one after the other; SHA-256 for SGX, whose enclaves put 32 bytes in the report
data, and SHA-512 for the others.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from keybroker.attestation_service.request import VerificationRequest
from keybroker.key_transfer.attested import Attested, read_attested
from keybroker.key_transfer.nonces import Nonce, Nonces
from keybroker.key_transfer.transfer_policy import SGX, TDX, TransferPolicy
from keybroker.key_transfer.trust_authority import Evidence, TrustAuthority
from keybroker.model.errors import EvidenceError, MalformedError
from keybroker.model.strict_json import parse_json
from keybroker.model.tee import Tee
from keybroker.tokens.verifier import VerifiedToken

#: The attestation policy that own evidence is appraised by, as for ``/kbs/v0``.
POLICY_IDS = ("default",)


class Attestation(Protocol):
    """The part of an attestation service that is asked here."""

    async def evaluate(
        self, requests: Sequence[VerificationRequest], policy_ids: Sequence[str]
    ) -> str:
        """Return the signed attestation result."""
        ...


class TokenVerification(Protocol):
    """Decides which attestation results count."""

    async def verify(self, token: str) -> VerifiedToken:
        """Return the verified token."""
        ...


class EvidenceAppraiser(Protocol):
    """Issues nonces and appraises evidence that binds them."""

    async def nonce(self, policy: TransferPolicy, key_id: str) -> Nonce:
        """Issue a nonce for the transfer of one key, under its policy.

        Raises:
            TrustAuthorityError: the service failed.
        """
        ...

    async def appraise(
        self, evidence: Evidence, nonce: Nonce, policy: TransferPolicy, key_id: str
    ) -> Attested:
        """Return what evidence attests, and use up the nonce.

        Raises:
            EvidenceError: it is not genuine, or the nonce is expired, used or of another.
            TransferDeniedError: it is about another kind of TEE.
            TrustAuthorityError: the service failed.
        """
        ...


class OwnAppraiser:
    """The broker's own attestation service."""

    def __init__(self, attestation: Attestation, tokens: TokenVerification, nonces: Nonces) -> None:
        self._attestation = attestation
        self._tokens = tokens
        self._nonces = nonces

    async def nonce(self, policy: TransferPolicy, key_id: str) -> Nonce:  # noqa: ARG002
        return self._nonces.issue(key_id)

    async def appraise(
        self, evidence: Evidence, nonce: Nonce, policy: TransferPolicy, key_id: str
    ) -> Attested:
        self._nonces.verify(nonce, key_id)
        request = VerificationRequest(
            tee=policy.tee,
            evidence=_evidence_document(policy, evidence),
            runtime_data=report_data(policy.tee, nonce, evidence.user_data),
        )
        try:
            token = await self._attestation.evaluate([request], POLICY_IDS)
        except MalformedError as error:
            raise EvidenceError(error.diagnostics()) from None
        claims = (await self._tokens.verify(token)).claims
        await self._nonces.use(nonce, own=True)
        return _holding(read_attested(claims, policy), evidence.user_data)


class TrustAuthorityAppraiser:
    """Intel Trust Authority."""

    def __init__(self, authority: TrustAuthority, nonces: Nonces) -> None:
        self._authority = authority
        self._nonces = nonces

    async def nonce(self, policy: TransferPolicy, key_id: str) -> Nonce:  # noqa: ARG002
        return await self._authority.nonce(key_id)

    async def appraise(
        self, evidence: Evidence, nonce: Nonce, policy: TransferPolicy, key_id: str
    ) -> Attested:
        token = await self._authority.appraise(evidence, nonce, policy, key_id)
        claims = await self._authority.verify(token)
        _verify_nonce(claims, nonce, policy)
        await self._nonces.use(nonce, own=False)
        attested = read_attested(claims, policy)
        if attested.held_data is not None and not hmac.compare_digest(
            attested.held_data, evidence.user_data
        ):
            raise EvidenceError("the token attests other user data than was sent")
        return attested


class AppraiserByKind:
    """Trust Authority for what it attests, the broker's own service for every other TEE."""

    def __init__(self, authority: EvidenceAppraiser, own: EvidenceAppraiser) -> None:
        self._authority = authority
        self._own = own

    async def nonce(self, policy: TransferPolicy, key_id: str) -> Nonce:
        return await self._for(policy).nonce(policy, key_id)

    async def appraise(
        self, evidence: Evidence, nonce: Nonce, policy: TransferPolicy, key_id: str
    ) -> Attested:
        return await self._for(policy).appraise(evidence, nonce, policy, key_id)

    def _for(self, policy: TransferPolicy) -> EvidenceAppraiser:
        return self._authority if policy.attestation_type in (SGX, TDX) else self._own


def report_data(tee: Tee, nonce: Nonce, user_data: bytes) -> bytes:
    """Return the digest that evidence must hold: 32 bytes for SGX, 64 for others."""
    algorithm = hashlib.sha256 if tee is Tee.SGX else hashlib.sha512
    return algorithm(nonce.bound + user_data).digest()


def _holding(attested: Attested, user_data: bytes) -> Attested:
    return Attested(
        values=attested.values,
        tcb_up_to_date=attested.tcb_up_to_date,
        matched_policy_ids=attested.matched_policy_ids,
        debuggable=attested.debuggable,
        held_data=user_data,
    )


def _evidence_document(policy: TransferPolicy, evidence: Evidence) -> Any:
    if policy.attestation_type not in (SGX, TDX):
        # What a verifier takes on /kbs/v0 as primary evidence, as it is written there.
        try:
            return parse_json(evidence.quote)
        except MalformedError as error:
            raise EvidenceError(error.diagnostics()) from None
    document = {"quote": base64.b64encode(evidence.quote).decode("ascii")}
    # Older clients send a log of their own making in JSON, which no register vouches for.
    if policy.attestation_type == TDX and evidence.event_log[:1] not in (b"", b"[", b"{"):
        document["cc_eventlog"] = base64.b64encode(evidence.event_log).decode("ascii")
    return document


def _verify_nonce(claims: Mapping[str, Any], nonce: Nonce, policy: TransferPolicy) -> None:
    nested = claims.get(policy.attestation_type.lower())
    own = nested if isinstance(nested, Mapping) else claims
    said = own.get("verifier_nonce", claims.get("verifier_nonce"))
    if said is None:
        return  # the service verified it and need not repeat it
    sent = nonce.to_json()
    if not isinstance(said, Mapping) or any(
        said.get(name) not in (None, sent[name]) for name in ("val", "iat")
    ):
        raise EvidenceError("the token is about another nonce")
