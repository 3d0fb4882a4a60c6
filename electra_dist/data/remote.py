"""Corpora at fsspec addresses (s3://, gs://, https://, file:// ...), through a cache on the node.

A file is fetched when it is first read, under a temporary name; it gets its name in the cache after
its hash was checked, so what has a name there is whole. The name holds the hash: a corpus that was
built again at the same address never meets files of the old one. Processes share the cache without
locks: where several fetch one file, the first goes on and the others wait for as long as it grows;
if two get to the end all the same, the second rename replaces a file by an equal one.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import xxhash

from electra_dist.errors import UserError
from electra_dist.runtime.retry import Retry, may_pass, retrying

Result = TypeVar("Result")
_log = logging.getLogger(__name__)

_PIECE_BYTES = 8 << 20
_POLL_SECONDS = 0.2
_STALLED_SECONDS = 30.0
"""A fetch of another process that has not grown for so long is not waited for any more."""
_LEFTOVER_SECONDS = 24 * 3600.0
_CACHE_NAME = re.compile(r".+-[0-9a-f]{16}\.\w+(\.[0-9]{20}-[0-9a-f]{8}\.tmp)?")
_NUM_FETCHES = 3
"""Times that a file is fetched when it comes damaged, or is evicted before it is opened."""


def is_address(folder: str | Path) -> bool:
    """Whether this names a remote folder."""
    return "://" in str(folder)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Where fetched files lie, how much of them is kept, and how often a read is tried."""

    folder: Path
    max_bytes: int | None = None
    retry: Retry = field(default_factory=Retry)

    @classmethod
    def at(cls, folder: str | None = None, max_bytes: int | None = None) -> Cache:
        """A cache at `folder`; None: in TMPDIR where it is set, else in the user's cache folder."""
        if folder is None:
            if node_folder := os.environ.get("TMPDIR"):
                folder = str(Path(node_folder) / f"electra_dist-{os.getuid()}")
            else:
                base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
                folder = str(Path(base) / "electra_dist")
        return cls(folder=Path(folder), max_bytes=max_bytes)

    def make_room(self, num_bytes: int) -> None:
        """Remove the files used longest ago until `num_bytes` more fit into `max_bytes`.

        Files that this process has mapped stay; another process that has one mapped keeps what it
        mapped, as the file system frees it when the last one has let go of it.
        """
        files = sorted(self._files(), key=lambda entry: entry[1].st_mtime)
        oldest = time.time() - _LEFTOVER_SECONDS
        for path, status in files:
            if path.name.endswith(".tmp") and status.st_mtime < oldest:
                path.unlink(missing_ok=True)
        if self.max_bytes is None:
            return
        total = sum(status.st_size for _, status in files) + num_bytes
        mapped = _mapped_files() if total > self.max_bytes else set()
        for path, status in files:
            if total <= self.max_bytes:
                return
            if not path.name.endswith(".tmp") and str(path.resolve()) not in mapped:
                path.unlink(missing_ok=True)
                total -= status.st_size
                _log.debug("evicted %s from the cache", path)
        if total > self.max_bytes:
            _log.warning(
                "%s will hold %d bytes, over data.cache_bytes = %d: the rest is in use",
                *(self.folder, total, self.max_bytes),
            )

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Files of the cache; nothing else that lies in the folder is touched."""
        for path in self.folder.rglob("*"):
            if _CACHE_NAME.fullmatch(path.name):
                # If it is gone, another process evicted it, or gave it its name.
                with suppress(FileNotFoundError):
                    yield path, path.stat()


@dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """A folder at an address; `local` is where its files lie in the cache."""

    address: str
    local: Path
    cache: Cache

    @classmethod
    def at(cls, address: str, cache: Cache) -> RemoteFolder:
        """The folder at `address`, with a place of its own in the cache."""
        address = address.rstrip("/")
        name = f"{address.rsplit('/', 1)[-1]}-{xxhash.xxh3_64_hexdigest(address.encode())[:8]}"
        return cls(address=address, local=cache.folder / name, cache=cache)

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(
            address=f"{self.address}/{name}", local=self.local / name, cache=self.cache
        )

    def read_bytes(self) -> bytes:
        """What the file at this address holds; it is not kept in the cache.

        Raises:
            FileNotFoundError: nothing is there.
            UserError: it cannot be read.
        """

        def action() -> bytes:
            with fsspec.open(self.address, "rb").open() as file:
                return bytes(file.read())

        return self._read(action)

    def read(self, record: Mapping[str, Any], read: Callable[[Path], Result]) -> Result:
        """What `read` makes of the cached file of a manifest's record.

        Raises:
            UserError: it is missing or damaged at its address, or cannot be read.
        """
        for _ in range(_NUM_FETCHES - 1):
            path = self.fetch(record)
            try:
                return read(path)
            except FileNotFoundError:  # another process evicted it in between
                _log.info("%s was evicted before it was read; it is fetched again", path)
        return read(self.fetch(record))

    def fetch(self, record: Mapping[str, Any]) -> Path:
        """The cached file of a manifest's record (`file`, its hash, `bytes`), fetched if needed.

        Raises:
            UserError: it is missing or damaged at its address, or cannot be read.
        """
        name = Path(record["file"])
        path = self.local / f"{name.stem}-{_hash_of(record)[:16]}{name.suffix}"
        try:
            os.utime(path)  # eviction takes what was used longest ago
            return path
        except FileNotFoundError:
            pass
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(
                f"{path.name}.{time.time_ns():020}-{secrets.token_hex(4)}.tmp"
            )
            temporary.touch()
            try:
                if not _came_from_another(path, temporary):
                    self.cache.make_room(record.get("bytes", 0))
                    self._fetch_whole(record, temporary)
                    os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error}): free some space, or set data.cache_dir and "
                "data.cache_bytes"
            ) from error
        return path

    def _fetch_whole(self, record: Mapping[str, Any], temporary: Path) -> None:
        """Download until the hash is the recorded one."""
        source = self / record["file"]
        for attempt in range(1, _NUM_FETCHES + 1):
            try:
                found = source._read(lambda: source._download(temporary, record))
            except FileNotFoundError:
                raise UserError(
                    f"{source} does not exist, but the manifest names it: copy the corpus again"
                ) from None
            if found == _hash_of(record):
                _log.info("fetched %s", source)
                return
            _log.warning("%s came damaged (fetch %d of %d)", source, attempt, _NUM_FETCHES)
        raise UserError(
            f"{source} is damaged: its content does not match the hash in the manifest, "
            f"{_NUM_FETCHES} times over; copy the corpus again"
        )

    def _download(self, temporary: Path, record: Mapping[str, Any]) -> str:
        """Copy the file at this address; its hash, of the kind that the record has."""
        digest = xxhash.xxh3_128() if "xxh3_128" in record else hashlib.sha256()
        with fsspec.open(self.address, "rb").open() as remote, temporary.open("wb") as file:
            while piece := remote.read(_PIECE_BYTES):
                digest.update(piece)
                file.write(piece)
        return str(digest.hexdigest())

    def _read(self, action: Callable[[], Result]) -> Result:
        """A remote read, tried again; the errors of all kinds of clients in one sentence."""
        try:
            return retrying(f"reading {self}", action, self.cache.retry)
        except (UserError, FileNotFoundError):
            raise
        except ImportError as error:
            raise UserError(f"{self} needs another package: {error}") from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # of the cache's disk
            tries = f" after {self.cache.retry.num_attempts} attempts" if may_pass(error) else ""
            raise UserError(
                f"{self} cannot be read{tries} ({type(error).__name__}: {error}): check the "
                "address, the credentials and the network"
            ) from error


def _came_from_another(path: Path, temporary: Path) -> bool:
    """Whether another process, which was at it before, put the whole file at `path`.

    Names begin with the time, so the first of those that fetch the same file sees nobody before it.
    """
    while True:
        os.utime(temporary)  # this one is alive, and this is the time on that file system
        oldest = temporary.stat().st_mtime - _STALLED_SECONDS
        alive = False
        for other in path.parent.glob(f"{path.name}.*.tmp"):
            try:
                alive |= other.name < temporary.name and other.stat().st_mtime > oldest
            except FileNotFoundError:
                continue
        if path.exists():
            return True
        if not alive:
            return False
        time.sleep(_POLL_SECONDS)


def _hash_of(record: Mapping[str, Any]) -> str:
    return str(record.get("xxh3_128") or record["sha256"])


def _mapped_files() -> set[str]:
    """Files that this process has mapped into its memory (Linux; elsewhere none are known)."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
