"""Logging of a rank: everything into its file, what a person wants to read on rank 0's console.

- RUN/attempts/0001/rank_00003.log: every rank; DEBUG of ours, INFO of other libraries, warnings.
- The console (stderr): rank 0 only; INFO of ours, ERROR of other libraries.
"""

import logging
import sys
import time
from pathlib import Path
from typing import TextIO

from electra_dist.runtime.world import World

PACKAGE = "electra_dist"

SELF_HANDLING_LIBRARIES = ("DeepSpeed",)
"""Loggers that print to the console by a handler of their own, made when they are imported."""


class _ConsoleFilter(logging.Filter):
    """Ours from INFO, other libraries from ERROR."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_ours = record.name == PACKAGE or record.name.startswith(PACKAGE + ".")
        return record.levelno >= (logging.INFO if is_ours else logging.ERROR)


class _ToRoot(logging.Filter):
    """Hands a library's records to the root logger instead of the library's own handlers.

    A filter, because a logger keeps it whether the library is imported before or after: at its
    import DeepSpeed adds a handler to its logger and cuts it off from the root.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        logging.getLogger().handle(record)
        return False


def setup_logging(
    world: World, attempt_folder: Path | None, console: TextIO | None = None
) -> Path | None:
    """Send this rank's log to its file and, on rank 0, to the console; a later call replaces it.

    Python warnings become log records of "py.warnings": torch's FutureWarning about
    all_gather_into_tensor, one from every ZeRO step, is in the file and not on the console.

    Args:
        world: this process.
        attempt_folder: RUN/attempts/NNNN, or None for no file (before an attempt is claimed).
        console: instead of sys.stderr.

    Returns:
        The log file.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if getattr(h, "is_electra_dist", False)]:
        root.removeHandler(handler)
        handler.close()
    prefix = f"[rank {world.rank}]"
    handlers: list[logging.Handler] = []
    path = None
    if attempt_folder is not None:
        attempt_folder.mkdir(parents=True, exist_ok=True)
        path = log_path(world, attempt_folder)
        to_file = logging.FileHandler(path, encoding="utf-8")
        line = f"%(asctime)s.%(msecs)03dZ {prefix} %(levelname)s %(name)s: %(message)s"
        to_file.setFormatter(_formatter(line, "%Y-%m-%dT%H:%M:%S"))
        # UTC, as in events.jsonl: the hosts of a run need not agree on a time zone.
        to_file.formatter.converter = time.gmtime  # type: ignore[union-attr]
        handlers.append(to_file)
    if world.is_leader:
        to_console = logging.StreamHandler(console or sys.stderr)
        to_console.setFormatter(_formatter(f"%(asctime)s {prefix} %(message)s", "%H:%M:%S"))
        to_console.addFilter(_ConsoleFilter())
        handlers.append(to_console)
    if not handlers:
        handlers.append(logging.NullHandler())  # Else logging prints warnings by its last resort.
    for handler in handlers:
        handler.is_electra_dist = True  # type: ignore[attr-defined]
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger(PACKAGE).setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    for name in SELF_HANDLING_LIBRARIES:
        library = logging.getLogger(name)
        if not any(isinstance(f, _ToRoot) for f in library.filters):
            library.addFilter(_ToRoot())
    return path


def log_path(world: World, attempt_folder: Path) -> Path:
    """Where this rank's log is."""
    return attempt_folder / f"rank_{world.rank:05d}.log"


def _formatter(line: str, date: str) -> logging.Formatter:
    return logging.Formatter(line, date)
