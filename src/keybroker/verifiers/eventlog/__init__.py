"""Event logs of a measured boot: parse, explain, and hold against the registers of a quote.

    log bytes ──parse_event_log──▶ EventLog ──verify_replay──▶ bound to the quote
                                      └──claims()──▶ ``uefi_event_logs``

A log is plain text from the guest. It becomes evidence only when the digests in it, extended one
after the other, give the registers of a verified quote.
"""

from keybroker.verifiers.eventlog.log import (
    Event,
    EventLog,
    parse_event_log,
    parse_event_log_base64,
)

__all__ = ["Event", "EventLog", "parse_event_log", "parse_event_log_base64"]
