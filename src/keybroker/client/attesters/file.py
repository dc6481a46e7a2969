"""Evidence from a file, made elsewhere: recorded on other hardware, or by another program."""

from pathlib import Path
from typing import Any

from keybroker.client.errors import AttesterError
from keybroker.model.errors import MalformedError
from keybroker.model.strict_json import parse_json
from keybroker.model.tee import Tee


class FileAttester:
    """Hands out the evidence in a JSON file, whatever report data is asked for.

    A broker accepts it only where that file binds the very challenge at hand, so this serves
    programs that write the file on demand, and tests of a broker with recorded evidence.
    """

    def __init__(self, path: Path | str, tee: Tee | None = None) -> None:
        """Read the file's kind.

        Args:
            path: a JSON file.
            tee: its kind; by default told by the members that it has.

        Raises:
            AttesterError: the file cannot be read, or its kind cannot be told.
        """
        self._path = Path(path)
        self._tee = tee if tee is not None else _tell_tee(self._read())

    @property
    def tee(self) -> Tee:
        return self._tee

    def evidence(self, report_data: bytes) -> Any:  # noqa: ARG002 - the file is what it is
        """Return the evidence, read anew."""
        return self._read()

    def _read(self) -> Any:
        try:
            return parse_json(self._path.read_bytes())
        except OSError as error:
            raise AttesterError(f"evidence file: {error.strerror}: {self._path}") from None
        except MalformedError as error:
            raise AttesterError(f"evidence file {self._path}: {error.detail}") from None


#: Members that only evidence of that kind has, the most telling first.
_TELLING_MEMBERS = (
    ("attestation_report", Tee.SNP),
    ("cc_eventlog", Tee.TDX),
    ("quote", Tee.SGX),
    ("svn", Tee.SAMPLE),
)


def _tell_tee(evidence: Any) -> Tee:
    if isinstance(evidence, dict):
        for member, tee in _TELLING_MEMBERS:
            if member in evidence:
                return tee
    raise AttesterError("the kind of TEE cannot be told from the evidence file; name it")
