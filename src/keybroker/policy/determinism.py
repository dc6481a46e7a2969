"""Whether a policy gives the same answer to the same question, so that the answer may be kept."""

from keybroker.policy.lexer import dotted_names, tokens

#: Built-ins whose result is not a function of their arguments: clock, chance, network, host.
_CHANGING_PACKAGES = ("time.", "rand.", "uuid.", "http.", "net.lookup", "opa.runtime")

#: Built-ins that compare a time in their arguments with the clock.
_CLOCK_READERS = frozenset(
    {
        "io.jwt.decode_verify",
        "crypto.x509.parse_and_verify_certificates",
        "crypto.x509.parse_and_verify_certificates_with_options",
    }
)


def is_deterministic(source: str) -> bool:
    """Return whether nothing in a policy reads the clock, chance, the network or the host.

    Errs on the side of no: a parser of times named in a policy is taken for a clock.
    """
    return not any(
        name.text in _CLOCK_READERS
        or f"{name.text}.".startswith(_CHANGING_PACKAGES)
        or name.text.startswith("net.lookup")
        for name in dotted_names(list(tokens(source)))
    )
