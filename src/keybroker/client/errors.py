"""What can go wrong for a guest or an administrator, one class for each thing they can do about it.

::

    ClientError
    ├── InputError              the caller passed something that cannot be sent
    ├── AttesterError           this machine could not produce evidence
    ├── TeeKeyError             the TEE key cannot be read or used
    ├── ConnectionFailedError   no answer came
    │   └── UntrustedServerError    the server's certificate is not trusted
    ├── ProtocolError           an answer came that the protocol does not know
    │   └── SealedSecretError       the secret in it cannot be opened with this TEE key
    └── BrokerError             the broker refused
        ├── BadRequestError         400, 405, 415
        ├── UnauthenticatedError    401
        ├── DeniedError             403
        ├── NotFoundError           404
        ├── TooLargeError           413
        ├── BusyError               429, 503
        └── BrokerFailedError       other 5xx

No other exception leaves the client on account of what a server answers, however it lies.
"""

from typing import ClassVar

from keybroker.model.errors import ERROR_TYPE_PREFIX


class ClientError(Exception):
    """Base of every error of the client."""

    default_hint: ClassVar[str] = ""

    def hint(self) -> str:
        """Say to a person what to do next; empty where nothing sensible is known."""
        return self.default_hint


class InputError(ClientError, ValueError):
    """The caller passed something that cannot be sent, such as a path with empty segments."""


class AttesterError(ClientError):
    """This machine could not produce evidence."""

    default_hint = (
        "Check that this is a confidential guest, that configfs is mounted at"
        " /sys/kernel/config, and that you may write to /sys/kernel/config/tsm/report."
    )


class TeeKeyError(ClientError):
    """The TEE key cannot be read or used."""

    default_hint = (
        "Give an unencrypted PEM private key: EC on P-256, P-384 or P-521, or RSA of 2048 bits"
        " or more."
    )


class ConnectionFailedError(ClientError):
    """No answer came: nobody listens there, the connection broke, or it took too long."""

    default_hint = "Check the URL and that the broker runs there."


class UntrustedServerError(ConnectionFailedError):
    """The server's certificate does not lead to a root that this client trusts."""

    default_hint = "Name the broker's own certificate or its CA with --cert-file (PEM)."


class ProtocolError(ClientError):
    """The answer is not one that the protocol knows."""

    default_hint = "Check that the URL is that of a key broker that speaks protocol 0.4.0."


class SealedSecretError(ProtocolError):
    """The answer holds a secret that this TEE key cannot open."""

    default_hint = (
        "The secret was encrypted to another key. Use the TEE key whose public part went into"
        " the attestation."
    )


class BrokerError(ClientError):
    """The broker refused.

    Attributes:
        status: HTTP status code.
        problem: last part of the problem type URI, such as ``PolicyDeny``; empty if none came.
        detail: the broker's own words.
    """

    def __init__(self, status: int, problem: str = "", detail: str = "") -> None:
        self.status = status
        self.problem = problem
        self.detail = detail
        told = detail or "the broker gave no reason"
        super().__init__(f"{told} ({status} {problem})" if problem else f"{told} ({status})")


class BadRequestError(BrokerError):
    """The broker cannot take the request: 400, 405 or 415."""

    default_hint = "Correct the request; sending it again will not help."

    def hint(self) -> str:
        if self.problem == "ProtocolVersionMismatch":
            return "Broker and client speak different protocol versions: upgrade the older one."
        return self.default_hint


class UnauthenticatedError(BrokerError):
    """Nothing valid proved who asks: 401."""

    default_hint = "Attest again: the session or the token has expired, or is of another broker."

    def hint(self) -> str:
        match self.problem:
            case "AdminAuth":
                return "Pass a valid administrator token with --admin-token-file."
            case "AttestationError":
                return (
                    "The evidence was refused. The broker's log says which check failed; a guest"
                    " is never told."
                )
        return self.default_hint


class DeniedError(BrokerError):
    """Who asks is known, and a policy says no: 403."""

    default_hint = (
        "An administrator can see why: kbs-client get-resource --path PATH --explain"
        " --admin-token-file FILE."
    )


class NotFoundError(BrokerError):
    """There is no such thing, for those who may know: 404."""

    default_hint = "Check the path; an administrator can list what there is."


class TooLargeError(BrokerError):
    """What was sent is larger than the broker takes: 413."""

    default_hint = "Send less, or raise http_server.payload_request_size in the configuration."


class BusyError(BrokerError):
    """The broker cannot serve now: 429 or 503."""

    default_hint = "Try again in a moment."


class BrokerFailedError(BrokerError):
    """The broker failed: 5xx."""

    default_hint = "The broker's log says what happened."


_BY_STATUS: dict[int, type[BrokerError]] = {
    400: BadRequestError,
    405: BadRequestError,
    415: BadRequestError,
    401: UnauthenticatedError,
    403: DeniedError,
    404: NotFoundError,
    413: TooLargeError,
    429: BusyError,
    503: BusyError,
}


def broker_error(status: int, problem_type: str, detail: str) -> BrokerError:
    """Make the error for a status code.

    Args:
        status: HTTP status code of the answer.
        problem_type: ``type`` of the problem document, a URI; may be empty.
        detail: ``detail`` of the problem document; may be empty.
    """
    problem = problem_type.removeprefix(ERROR_TYPE_PREFIX)
    fallback = BrokerFailedError if status >= 500 else BrokerError
    return _BY_STATUS.get(status, fallback)(status, problem, detail)
