"""Configures logging for ``embedroute serve``: text for people, or one JSON object a line."""

import logging
import time
from typing import Final, Literal

import msgspec

Format = Literal["text", "json"]

FORMATS: Final[tuple[Format, ...]] = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
STANDARD: Final = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
)
"""Attributes of a record that are not fields of its own."""


class JSONFormatter(logging.Formatter):
    """Writes a record as one line of JSON, with its ``extra`` fields beside the usual ones.

    ``time`` is in UTC, with milliseconds. Values without a form in JSON are written as text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON of ``record``."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        extras = {name: value for name, value in vars(record).items() if name not in STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return msgspec.json.encode(extras | fields, enc_hook=str).decode()


def make_log_config(level: str, log_format: Format) -> dict[str, object]:
    """Return the argument of ``logging.config.dictConfig``: every record goes to standard error.

    ``level`` applies to embedroute and to uvicorn. Other libraries log warnings and errors.
    """
    formats: dict[Format, dict[str, object]] = {
        "text": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
        "json": {"()": JSONFormatter},
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"chosen": formats[log_format]},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "chosen"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {name: {"level": level.upper()} for name in ("embedroute", "uvicorn")},
    }
