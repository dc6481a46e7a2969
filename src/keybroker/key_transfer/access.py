"""Administrators' access: a password for a token, a token for a user with a permission.

Tokens are signed with a key of this broker's own and are short-lived. They name the user; what the
user may do is read from the user's record at every request, so that a permission taken away, a
changed password or a deleted user is in force at once.
"""

import asyncio
import logging
import time

from keybroker.config.key_transfer import KeyTransferConfig
from keybroker.key_transfer.errors import AccessError, InUseError
from keybroker.key_transfer.lockout import Lockout
from keybroker.key_transfer.passwords import Passwords
from keybroker.key_transfer.permissions import ALL_PERMISSIONS, permits
from keybroker.key_transfer.records import User
from keybroker.key_transfer.users import UserStore
from keybroker.model.errors import ConfigError, MalformedError, NotFoundError
from keybroker.tokens.algorithms import ALGORITHMS
from keybroker.tokens.claims import parse_claims, verify_times
from keybroker.tokens.jws import VerificationKey, parse_compact, parse_header, verify_signature
from keybroker.tokens.remembered import Remembered
from keybroker.tokens.signer import TokenSigner

logger = logging.getLogger(__name__)

#: What the tokens say of who made them and for whom; no token of another kind says the same.
ISSUER = "keybroker"
AUDIENCE = "keybroker:/kbs/v1"

#: No token of ours comes near this.
MAX_TOKEN_CHARS = 4096

#: Verified tokens remembered until they expire.
REMEMBERED_TOKENS = 1024

#: Logins of one name wait for each other; so many names at most do not wait for other names.
TURNS = 64


class Access:
    """Who may do what.

    Args:
        users: all users.
        passwords: verifies passwords.
        lockout: counts wrong ones.
        signer: signs and, by its public key, verifies tokens.
        token_seconds: how long a token is valid.
    """

    def __init__(
        self,
        users: UserStore,
        passwords: Passwords,
        lockout: Lockout,
        signer: TokenSigner,
        *,
        token_seconds: int,
    ) -> None:
        self._users = users
        self._passwords = passwords
        self._lockout = lockout
        self._signer = signer
        self._key = VerificationKey(signer.public_key, ALGORITHMS[signer.algorithm])
        self._token_seconds = token_seconds
        self._verified: Remembered[str, tuple[str, object]] = Remembered(
            REMEMBERED_TOKENS, REMEMBERED_TOKENS
        )
        self._turns = [asyncio.Lock() for _ in range(TURNS)]

    async def issue_token(self, username: str, password: str) -> str:
        """Return a token for who knows the password.

        Raises:
            AccessError: no such user, or another password; which of them is not said.
            LockedOutError: too many wrong passwords, or too many logins at once.
        """
        # Guesses at one user that come at once are looked at one after the other, else all of
        # them would pass the check before the first is counted.
        async with self._turns[hash(username) % TURNS]:
            user = await self._users.find(username)
            user_id = None if user is None else user.id
            await self._lockout.check(user_id, username)
            right = await self._passwords.verify(
                password, None if user is None else user.password_hash
            )
            if user is None or not right:
                await self._lockout.failed(user_id, username)
                raise AccessError("a login failed", detail="invalid username or password")
            await self._lockout.succeeded(user.id)
        now = int(time.time())
        logger.info("user %s logged in", user.id)
        return self._signer.sign(
            {
                "iss": ISSUER,
                "aud": AUDIENCE,
                "sub": user.id,
                "credential": user.credential,
                "iat": now,
                "exp": now + self._token_seconds,
            }
        )

    async def require(self, authorization: str | None, permission: str) -> User:
        """Return the user of a request who has the permission.

        Args:
            authorization: the header of that name.

        Raises:
            AccessError: no valid token, or a user without the permission.
        """
        user = await self._authenticate(authorization)
        if not permits(user.permissions, permission):
            raise AccessError(f"user {user.id} has no permission {permission}")
        return user

    async def _authenticate(self, authorization: str | None) -> User:
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_CHARS:
            raise AccessError("no bearer token")
        user_id, credential = self._verify(token)
        try:
            user = await self._users.get(user_id)
        except NotFoundError:
            raise AccessError("the token's user was deleted") from None
        if credential != user.credential:
            raise AccessError("the user's password was changed since the token was issued")
        return user

    def _verify(self, token: str) -> tuple[str, object]:
        """Return whose token it is, and of which of the user's passwords."""
        now = time.time()
        known = self._verified.get(token, now)
        if known is not None:
            return known
        try:
            jws = parse_compact(token)
            verify_signature(jws, parse_header(jws.header_segment).algorithm, self._key)
            claims = parse_claims(jws.payload)
            expires_at = verify_times(claims, now)
        except MalformedError as error:
            raise AccessError(error.diagnostics()) from None
        user_id = claims.get("sub")
        if (claims.get("iss"), claims.get("aud")) != (ISSUER, AUDIENCE) or not isinstance(
            user_id, str
        ):
            raise AccessError("a token of another kind")
        verified = user_id, claims.get("credential")
        self._verified.put(token, verified, expires_at=expires_at)
        return verified


async def make_administrator(users: UserStore, config: KeyTransferConfig) -> None:
    """Make the configured administrator unless there is a user of the name.

    Raises:
        ConfigError: name or password may not be so.
    """
    if config.admin_username is None or config.admin_password is None:
        return
    if await users.find(config.admin_username) is not None:
        return
    try:
        user = await users.create(
            config.admin_username, config.admin_password.reveal(), list(ALL_PERMISSIONS)
        )
    except InUseError:
        logger.info("another process is making the administrator")
        return
    except MalformedError as error:
        raise ConfigError(f"key_transfer.admin_username: {error.diagnostics()}") from None
    logger.info("made the administrator %s", user.id)
