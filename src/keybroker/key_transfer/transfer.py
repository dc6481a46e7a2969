"""Handing out keys: to TEEs that satisfy the key's policy, and to administrators who may.

Whatever was true of a key when a request came may not be when its answer goes: keys are deleted
and put under other policies meanwhile, and evidence takes its time. So the record is read once
more when the key is about to be wrapped, and where it is another than the one that the decision
was about, the decision is made again, from the record that is in force then.
"""

import logging
from dataclasses import dataclass, field

from keybroker.key_transfer.attested import Attested, held_key, read_attested, verify_policy
from keybroker.key_transfer.errors import TransferDeniedError
from keybroker.key_transfer.evidence import EvidenceAppraiser, TokenVerification
from keybroker.key_transfer.keys import KeyStore
from keybroker.key_transfer.nonces import Nonce
from keybroker.key_transfer.policy_store import PolicyStore
from keybroker.key_transfer.records import NIL_ID, KeyRecord
from keybroker.key_transfer.transfer_policy import TransferPolicy
from keybroker.key_transfer.trust_authority import Evidence, TrustAuthority
from keybroker.model.errors import NotFoundError, TokenVerifierError
from keybroker.release.swk import (
    WrappedKey,
    parse_recipient_pem,
    seal_to_held_key,
    seal_to_recipient,
)
from keybroker.workbench import run

logger = logging.getLogger(__name__)

#: How often a transfer is decided anew because the key was changed meanwhile.
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Challenge:
    """The answer to an empty request: for which kind of TEE, and with which nonce."""

    attestation_type: str
    nonce: Nonce


@dataclass(frozen=True, slots=True)
class BackgroundRequest:
    """The second request of background mode."""

    attestation_type: str
    nonce: Nonce = field(repr=False)
    evidence: Evidence = field(repr=False)


class Transfers:
    """Hands out keys.

    Args:
        keys: all keys.
        policies: all transfer policies.
        appraiser: appraises evidence of background mode; None: this broker cannot.
        tokens: verifies tokens of attestation services.
        authority: verifies tokens of Trust Authority; None: they are not taken.
    """

    def __init__(
        self,
        keys: KeyStore,
        policies: PolicyStore,
        *,
        appraiser: EvidenceAppraiser | None,
        tokens: TokenVerification,
        authority: TrustAuthority | None,
    ) -> None:
        self._keys = keys
        self._policies = policies
        self._appraiser = appraiser
        self._tokens = tokens
        self._authority = authority

    async def challenge(self, key_id: str) -> Challenge:
        """Begin a transfer in background mode.

        Raises:
            NotFoundError: there is no such key.
            TransferDeniedError: the key has no policy.
            TrustAuthorityError: no nonce could be had.
        """
        _, policy = await self._in_force(key_id)
        nonce = await self._require_appraiser().nonce(policy, key_id)
        return Challenge(policy.attestation_type, nonce)

    async def with_token(self, key_id: str, token: str) -> WrappedKey:
        """Hand a key to the holder of an attestation token (passport mode).

        Raises:
            NotFoundError: there is no such key.
            TokenVerifierError: the token is not valid here.
            TransferDeniedError: it does not satisfy the key's policy.
            JweError: the key that it attests cannot be used.
            KeyManagerError: the key manager failed.
        """
        # Also tells keys that are not there before tokens are looked at, as the original does.
        await self._in_force(key_id)
        claims = await self._verify(token)
        for _ in range(_ATTEMPTS):
            record, policy = await self._in_force(key_id)
            attested = read_attested(claims, policy)
            wrapped = await self._release(record, policy, attested)
            if wrapped is not None:
                return wrapped
        raise TransferDeniedError("the key's policy changes too often")

    async def with_evidence(self, key_id: str, request: BackgroundRequest) -> WrappedKey:
        """Hand a key to who sends evidence (background mode).

        Raises:
            NotFoundError: there is no such key.
            EvidenceError: the evidence is not genuine, or the nonce not fresh.
            TransferDeniedError, JweError, KeyManagerError: as :meth:`with_token`.
            TrustAuthorityError: the service that appraises failed.
        """
        record, policy = await self._in_force(key_id)
        if request.attestation_type != policy.attestation_type:
            raise TransferDeniedError("the Attestation-Type is not the policy's")
        attested = await self._require_appraiser().appraise(
            request.evidence, request.nonce, policy, key_id
        )
        wrapped = await self._release(record, policy, attested)
        if wrapped is None:
            # The nonce is used up, so this client begins again under the policy that is in force.
            raise TransferDeniedError("the key was changed while its transfer was decided")
        return wrapped

    async def to_recipient(self, key_id: str, public_key: bytes) -> WrappedKey:
        """Hand a key to an administrator.

        Args:
            public_key: PEM.

        Raises:
            NotFoundError: there is no such key.
            JweError: the public key cannot be used.
            KeyManagerError: the key manager failed.
        """
        recipient = await run(parse_recipient_pem, public_key)
        record = await self._keys.get(key_id)
        octets = await self._keys.fetch(record)
        wrapped = await run(seal_to_recipient, recipient, octets)
        await self._keys.get(key_id)
        return wrapped

    async def _in_force(self, key_id: str) -> tuple[KeyRecord, TransferPolicy]:
        for _ in range(_ATTEMPTS):
            record = await self._keys.get(key_id)
            if record.transfer_policy_id == NIL_ID:
                raise TransferDeniedError(f"key {key_id} has no transfer policy")
            try:
                return record, await self._policies.get(record.transfer_policy_id)
            except NotFoundError:
                continue  # the key was put under another policy, and the old one deleted
        raise TransferDeniedError(f"the transfer policy of key {key_id} is gone")

    async def _release(
        self, record: KeyRecord, policy: TransferPolicy, attested: Attested
    ) -> WrappedKey | None:
        """Wrap the key; return None where the record is no longer the one decided about."""
        verify_policy(policy, attested)
        recipient = held_key(attested, policy)
        octets = await self._keys.fetch(record)
        wrapped = await run(seal_to_held_key, recipient, octets)
        if await self._keys.get(record.id) != record:
            return None
        logger.info(
            "key %s was transferred to a %s under policy %s",
            record.id,
            policy.attestation_type,
            policy.id,
        )
        return wrapped

    async def _verify(self, token: str) -> "dict[str, object]":
        if self._authority is not None:
            try:
                return dict(await self._authority.verify(token))
            except TokenVerifierError as error:
                logger.debug("not a token of Trust Authority: %s", error.diagnostics())
        return dict((await self._tokens.verify(token)).claims)

    def _require_appraiser(self) -> EvidenceAppraiser:
        if self._appraiser is None:
            raise NotFoundError(
                "nothing appraises evidence here",
                detail="this broker appraises no evidence: bring an attestation token",
            )
        return self._appraiser
