"""The errors that end a program, where standard error, to which it prints them, is lost.

libvirt starts programs with /dev/null as standard error; the log goes elsewhere then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from vgpud.daemon import logs
from vgpud.daemon.log_limit import UNLIMITED
from vgpud.errors import VgpudError

log = logging.getLogger(__name__)


@contextmanager
def logged_if_stderr_is_lost() -> Iterator[None]:
    """Log the errors that the block raises, if standard error is lost, and raise them."""
    try:
        yield
    except Exception as error:
        if logs.stderr_is_lost():
            _log(error)
        raise


def _log(error: Exception) -> None:
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            _log(each)
    elif isinstance(error, VgpudError):
        for line in str(error).splitlines():
            log.error("failed: %s", line, extra=UNLIMITED)
    else:
        log.error("failed by a fault of its own", exc_info=error)
