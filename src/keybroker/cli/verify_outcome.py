"""What ``keybroker verify`` asks of the module of a TEE, and what it gets."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from keybroker.verifiers.interface import ExpectedBinding, VerifiedEvidence


class UsageError(Exception):
    """The command line cannot be carried out as it stands; said to the user, exit code 2."""


@dataclass(frozen=True, slots=True)
class Question:
    """Is this evidence genuine?

    Attributes:
        evidence: the file's content.
        expected: what it has to bind; nothing where the user names nothing.
        at: the moment to judge it at; None: now, but evidence whose certificate has expired since
            is judged at the last moment of the certificate, with a remark.
    """

    evidence: bytes = field(repr=False)
    expected: ExpectedBinding
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Link:
    """One certificate of the chain that evidence verified up to."""

    name: str
    sha256: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """Evidence that verified.

    Attributes:
        summary: what it is evidence of, in one line.
        devices: the claims of each device.
        chain: the signer's certificate first, the root last.
        root: who vouches for the root, in a few words.
        judged_at: the moment at which the chain was valid.
        remarks: what a broker would hold against it, or the user should know.
    """

    summary: str
    devices: Sequence[VerifiedEvidence]
    chain: Sequence[Link]
    root: str
    judged_at: datetime
    remarks: Sequence[str] = ()


class TeeCommand(Protocol):
    """The module of a TEE, or of several that share their options."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this TEE has, in a group of their own."""

    def verify(self, question: Question, options: argparse.Namespace) -> Outcome:
        """Verify evidence.

        Raises:
            EvidenceError: it is refused; the diagnostics say why.
            ConfigError: a root that the user names cannot be used.
            UsageError: options are missing or contradict each other.
        """
        ...
