"""Errors that only key transfer has."""

from keybroker.model.errors import KeybrokerError, MalformedError, UnauthenticatedError


class KeyManagerError(KeybrokerError):
    """The key manager is down, slow, sealed, refuses or answers nonsense: 502, with a reason."""

    type = "KeyManagerError"
    status = 502
    default_detail = "the key manager failed"

    def __init__(self, reason: str, diagnostics: str = "") -> None:
        super().__init__(diagnostics or reason, detail=reason)


class KeyGoneError(KeyManagerError):
    """The key manager has no such key."""

    def __init__(self) -> None:
        super().__init__("the key manager has no such key")


class TrustAuthorityError(KeybrokerError):
    """Trust Authority does not answer, or not as it should: 502."""

    type = "TrustAuthorityError"
    status = 502
    default_detail = "the attestation service failed"

    def __init__(self, reason: str, diagnostics: str = "") -> None:
        super().__init__(diagnostics or reason, detail=reason)


class LockedOutError(KeybrokerError):
    """Too many wrong passwords, or too many logins at once: 429."""

    type = "LockedOut"
    status = 429
    default_detail = "too many failed attempts: try again later"


class AccessError(UnauthenticatedError):
    """No valid administrator's token, or one without the permission: 401, as in the original."""

    type = "Unauthorized"
    default_detail = "Unauthorized"


class TransferDeniedError(UnauthenticatedError):
    """What was attested does not satisfy the key's transfer policy: 401, as in the original."""

    type = "TransferDenied"
    default_detail = "the attestation does not satisfy the key's transfer policy"


class InUseError(MalformedError):
    """Something else still needs what is to be deleted, or a name is taken: 400."""

    type = "InUse"
