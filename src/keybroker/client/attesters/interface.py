"""The one interface of all attesters."""

from typing import Any, Protocol

from keybroker.model.tee import Tee


class Attester(Protocol):
    """Produces evidence of one TEE or device."""

    @property
    def tee(self) -> Tee:
        """The kind by which the broker picks the verifier."""

    def evidence(self, report_data: bytes) -> Any:
        """Produce evidence that binds ``report_data``.

        May block for as long as the hardware takes; called in a thread where that matters.

        Args:
            report_data: a digest of 32, 48 or 64 bytes; the attester pads it with zero bytes to
                the size of its evidence's field.

        Returns:
            A JSON value in the form that the kind's verifier takes.

        Raises:
            AttesterError: no evidence can be had.
        """
