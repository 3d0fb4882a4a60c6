"""Where torch and DeepSpeed put what they compile: a folder of the environment, no dead locks.

torch guards a compilation by a file named `lock` and waits for its removal without end: a start
that is killed in mid-compile makes every later start hang in silence. Here every process of ours
holds a shared flock on the folder while it lives, which the kernel takes back from the dead; who
gets it exclusively is alone, and may remove what dead compilations left.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

FOLDER_VARIABLE = "TORCH_EXTENSIONS_DIR"


def claim_extensions(environ: MutableMapping[str, str]) -> list[Path]:
    """Give this process its extensions folder, until it ends; returns the dead locks removed.

    TORCH_EXTENSIONS_DIR is taken as it is if it is set; else it is set to a folder of this
    interpreter and torch version under XDG_CACHE_HOME: two environments never share objects.
    """
    if FOLDER_VARIABLE not in environ:
        cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        words = f"{sys.prefix} {sys.version} {version('torch')} {version('deepspeed')}"
        name = hashlib.sha256(words.encode()).hexdigest()[:16]
        environ[FOLDER_VARIABLE] = str(cache / "electra_dist" / "extensions" / name)
    folder = Path(environ[FOLDER_VARIABLE])
    folder.mkdir(parents=True, exist_ok=True)
    # Never closed: it is held as long as the process lives, and children inherit it not.
    descriptor = os.open(folder / "in_use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    removed = []
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass  # others are alive, and a lock may be theirs; or the file system knows no flock
    else:
        for lock in sorted(folder.glob("**/lock")):
            with suppress(FileNotFoundError):
                lock.unlink()
                removed.append(lock)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return removed
