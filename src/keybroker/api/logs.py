"""Log lines: text for a terminal, JSON for machines; on standard error."""

import logging
import sys
import time
from typing import Any

import msgspec

from keybroker.config.service import LogConfig, LogFormat

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(_extras(record))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class _TextFormatter(logging.Formatter):
    """One line, or more with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {name}={value}" for name, value in _extras(record).items())
        line = f"{_utc(record.created)} {record.levelname:<8} {record.getMessage()}{extras}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        # A line break in foreign text must not look like a line of ours.
        head, *rest = line.split("\n")
        return "\n    ".join([head, *rest])


def configure(config: LogConfig) -> None:
    """Send the whole process's log to standard error in the configured form."""
    handler = logging.StreamHandler(sys.stderr)
    text = config.format is LogFormat.TEXT or (
        config.format is LogFormat.AUTO and sys.stderr.isatty()
    )
    handler.setFormatter(_TextFormatter() if text else _JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.value.upper())
    # The HTTP client writes whole URLs, which can hold what must not be logged.
    for noisy in ("httpx", "httpcore", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _utc(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
