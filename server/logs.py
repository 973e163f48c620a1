"""The log of the HTTP process."""

from __future__ import annotations

import logging
import sys

from quire.engine.bounded_log import BoundedHandler

_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def set_up(debug: bool) -> BoundedHandler:
    """Send the log of this process to standard error. Access lines are off: metrics count, and paths may hold names."""
    handler = BoundedHandler(sys.stderr.fileno())
    handler.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("quire").setLevel(logging.DEBUG if debug else logging.INFO)
    return handler
