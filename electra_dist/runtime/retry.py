"""Reads that fail for a moment, on network file systems and object stores, are tried again."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from electra_dist.errors import UserError

Result = TypeVar("Result")
_log = logging.getLogger(__name__)

_LASTING_ERRNOS = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
        *(errno.ELOOP, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE),
        *(errno.ENODEV, errno.EINVAL, errno.ENOMEM),
    }
)
_LASTING_ERRORS = (
    *(UserError, FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError),
    *(ImportError, AttributeError, TypeError, ValueError, KeyError, NotImplementedError),
)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often, and after which delays; half of a delay is random, so ranks spread out."""

    num_attempts: int = 6
    first_delay_seconds: float = 0.5
    """Doubles with every attempt: 15 seconds in all, and up to as much again of jitter."""

    def delay_seconds(self, attempt: int) -> float:
        """Before the attempt after `attempt`, counted from 1."""
        return self.first_delay_seconds * 2.0 ** (attempt - 1) * (1 + random.random())


def may_pass(error: Exception) -> bool:
    """Whether waiting may help: not where a name, a right, disk space or a package is missing.

    What object stores' clients raise is often no OSError, so all else may pass.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in _LASTING_ERRNOS
    return not isinstance(error, _LASTING_ERRORS)


def retrying(what: str, action: Callable[[], Result], retry: Retry | None = None) -> Result:
    """The result of `action`; failures that may pass are logged, and it is done again.

    Args:
        what: "reading FILE", for the log.
        action: may be called several times.
        retry: how often.

    Raises:
        Exception: what `action` raised last, or at once where waiting does not help.
    """
    retry = retry or Retry()
    for attempt in range(1, retry.num_attempts + 1):
        try:
            return action()
        except Exception as error:
            if attempt == retry.num_attempts or not may_pass(error):
                raise
            delay = retry.delay_seconds(attempt)
            _log.warning(
                "%s failed (attempt %d of %d: %s: %s); again in %.1f s",
                *(what, attempt, retry.num_attempts, type(error).__name__, error, delay),
            )
            time.sleep(delay)
    raise AssertionError("unreachable")
