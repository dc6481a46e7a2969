"""Errors that may reach a client, each with the type name and status of the protocol.

An error says two things to two people. ``detail`` goes into the answer: it never holds a path of
this machine, a key, a token, a secret or the claim that failed. ``diagnostics`` goes to the
administrator (log, ``--explain``) and may say why, though never a secret either.
"""

from typing import ClassVar

#: Prefix of the ``type`` member of an error answer (KBS protocol, "Error information").
ERROR_TYPE_PREFIX = "https://github.com/confidential-containers/kbs/errors/"


class KeybrokerError(Exception):
    """Base of every error of the broker.

    Attributes:
        type: last part of the problem type URI.
        status: HTTP status code of the answer.
        default_detail: what the client is told when the raiser says nothing else.
    """

    type: ClassVar[str] = "InternalError"
    status: ClassVar[int] = 500
    default_detail: ClassVar[str] = "the broker failed"

    def __init__(self, diagnostics: str = "", *, detail: str | None = None) -> None:
        self.detail = detail if detail is not None else self.default_detail
        self._diagnostics = diagnostics
        super().__init__(diagnostics or self.detail)

    def diagnostics(self) -> str:
        """Say to an administrator what happened and why."""
        return self._diagnostics or self.detail


class MalformedError(KeybrokerError):
    """The request cannot be parsed: 400. ``detail`` is the parser's message, which may leave."""

    type = "SerdeError"
    status = 400
    default_detail = "the request is malformed"

    def __init__(self, diagnostics: str = "", *, detail: str | None = None) -> None:
        super().__init__(
            diagnostics, detail=detail if detail is not None else (diagnostics or None)
        )


class ProtocolVersionError(MalformedError):
    """The client speaks another protocol version: 400."""

    type = "ProtocolVersionMismatch"
    default_detail = "the protocol version is not supported"


class UnauthenticatedError(KeybrokerError):
    """Nothing valid proves who asks: 401."""

    type = "AttestationError"
    status = 401
    default_detail = "not authenticated"


class EvidenceError(UnauthenticatedError):
    """Evidence did not verify: 401. A guest is never told which check failed."""

    type = "AttestationError"
    default_detail = "the evidence could not be verified"


class TokenNotFoundError(UnauthenticatedError):
    """Neither a session cookie nor a bearer token came with the request: 401."""

    type = "TokenNotFound"
    default_detail = "no attestation token: attest first, or send Authorization: Bearer"


class TokenVerifierError(UnauthenticatedError):
    """The attestation token is not valid here: 401."""

    type = "TokenVerifierError"
    default_detail = "the attestation token is not valid"


class AdminAuthError(UnauthenticatedError):
    """No valid administrator token: 401."""

    type = "AdminAuth"
    default_detail = "administrator access needs a valid token"


class AdminDeniedError(KeybrokerError):
    """A valid administrator, but no rule allows the request: 403."""

    type = "AdminAuth"
    status = 403
    default_detail = "the administrator may not do this"


class PolicyDenyError(KeybrokerError):
    """Authenticated, but a policy or an access rule says no: 403."""

    type = "PolicyDeny"
    status = 403
    default_detail = "access denied by policy"


class NotFoundError(KeybrokerError):
    """No such resource, plugin or path: 404."""

    type = "InvalidRequestPath"
    status = 404
    default_detail = "not found"


class PluginNotFoundError(NotFoundError):
    """No plugin of that name is configured: 404."""

    type = "PluginNotFound"
    default_detail = "no such plugin"


class MethodNotAllowedError(KeybrokerError):
    """The path exists, the method does not: 405."""

    type = "MethodNotAllowed"
    status = 405
    default_detail = "method not allowed"

    def __init__(self, diagnostics: str = "", *, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(diagnostics)
        self.allowed = allowed


class TooLargeError(KeybrokerError):
    """The payload is larger than the configured limit: 413."""

    type = "PayloadTooLarge"
    status = 413
    default_detail = "the payload is too large"


class UnsupportedMediaTypeError(KeybrokerError):
    """The content type is not one the endpoint takes: 415."""

    type = "UnsupportedMediaType"
    status = 415
    default_detail = "the content type is not supported"


class TooManyRequestsError(KeybrokerError):
    """A limit on the rate or on work in flight is reached: 429."""

    type = "TooManyRequests"
    status = 429
    default_detail = "too many requests"


class JweError(KeybrokerError):
    """The TEE's public key cannot be encrypted to: 400, since the client chose the key."""

    type = "JweError"
    status = 400
    default_detail = "the TEE public key cannot be used"


class PolicyError(MalformedError):
    """A policy does not compile: 400. ``detail`` holds line and column and may leave."""

    type = "PolicyEngine"
    default_detail = "the policy does not compile"


class PolicyEngineError(KeybrokerError):
    """A policy that was accepted could not be evaluated: 500."""

    type = "PolicyEngine"
    default_detail = "the policy could not be evaluated"


class StorageError(KeybrokerError):
    """The storage back end failed: 500 (503 where trying again may help)."""

    type = "StorageError"
    default_detail = "the storage is not available"


class ConfigError(KeybrokerError):
    """The configuration is wrong; said at start-up, to the operator, whole."""

    type = "ConfigError"
    default_detail = "the configuration is not valid"
