"""Finding and opening the files behind --input: paths, globs, folders, fsspec addresses.

Compression goes by the file's suffix. A local file is opened by Python, everything else by fsspec:
s3:// and gs:// need s3fs and gcsfs, https:// needs aiohttp and requests.
"""

import bz2
import glob
import gzip
import lzma
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, cast

from electra_dist.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Windows of 2 GiB are what `zstd --long=31` writes and 64-bit readers take.
_ZSTD_OPTIONS = {int(zstd.DecompressionParameter.window_log_max): 31}
_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
    ".xz": lzma.LZMAFile,
    ".zst": lambda raw: zstd.ZstdFile(raw, options=_ZSTD_OPTIONS),
    ".bz2": bz2.BZ2File,
}
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, gzip.BadGzipFile)
# Found in a folder, such a file is quarantined as binary; given by name, it is a mistake.
_UNREADABLE_SUFFIXES = {".zip", ".tar", ".tgz", ".7z", ".lz4", ".arrow"}


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the input (for source hf: one dataset)."""

    address: str
    """Local path or fsspec address: what opens it."""
    name: str
    """Relative to the folder it was found in, else as given: nothing that differs by machine."""
    given: str
    """The --input word that led to it."""
    num_bytes: int | None
    """Size as stored; None where the store does not say."""
    version: str
    """Changes when the file changes: its time or tag; empty where the store does not say."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file opened for reading."""

    stream: BinaryIO
    """Its decompressed bytes."""
    raw: BinaryIO
    """The same stream, or the one of the compressed bytes: its position shows the progress."""

    def is_damage(self, error: Exception) -> bool:
        """Whether reading failed for what the archive holds, rather than for the disk under it."""
        if isinstance(error, _DAMAGE):
            return True
        # bz2 reports damage as a plain OSError without a number; a disk that fails gives one.
        return self.stream is not self.raw and type(error) is OSError and error.errno is None


def find_files(inputs: Sequence[str]) -> list[InputFile]:
    """The files behind a list of files, folders (all below, sorted, without hidden ones) and globs.

    Raises UserError for a path that is missing, a folder or glob without files, a store that cannot
    be reached, or a container that is not read here.
    """
    if not inputs:
        raise UserError("--input is empty: give at least one file, folder or glob")
    files: list[InputFile] = []
    for given in inputs:
        found = _find_remote(given) if _is_remote(given) else _find_local(given)
        if not found:
            raise UserError(f"--input {given} leads to no file: check the folder or the pattern")
        files += found
    return files


@contextmanager
def open_file(file: InputFile) -> Iterator[OpenFile]:
    """Opens a file; a suffix .gz, .xz, .zst or .bz2 (in any case) is decompressed."""
    with _open_raw(file.address) as raw:
        opener = _OPENERS.get(_suffix(file.address))
        if opener is None:
            yield OpenFile(raw, raw)
            return
        with opener(raw) as stream:
            yield OpenFile(cast(BinaryIO, stream), raw)


@contextmanager
def seekable(opened: OpenFile) -> Iterator[BinaryIO]:
    """The decompressed bytes with random access; a compressed file goes through a temporary one."""
    if opened.stream is opened.raw:
        yield opened.stream
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(opened.stream, copy, 1 << 20)
        copy.seek(0)
        yield cast(BinaryIO, copy)


def _open_raw(address: str) -> BinaryIO:
    if not _is_remote(address):
        return Path(address).open("rb")
    file_system, path = _file_system(address)
    return cast(BinaryIO, file_system.open(path, "rb"))


def _find_local(given: str) -> list[InputFile]:
    path = Path(given.removeprefix("file://"))
    if path.is_file():
        if _suffix(given) in _UNREADABLE_SUFFIXES:
            raise UserError(
                f"--input {given} is a {_suffix(given)} file, which is not read here: give plain"
                " text, JSON lines or Parquet, as they are or as .gz, .xz, .zst or .bz2"
            )
        return [_local(path, path.name, given)]
    if path.is_dir():
        below = ((file.relative_to(path), file) for file in path.rglob("*") if file.is_file())
        return [_local(file, n.as_posix(), given) for n, file in sorted(below) if _visible(n)]
    if glob.has_magic(given):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (spelling as given)
        return [_local(Path(match), match, given) for match in matches if Path(match).is_file()]
    raise UserError(f"--input {given} does not exist: check the path")


def _local(path: Path, name: str, given: str) -> InputFile:
    if not os.access(path, os.R_OK):
        raise UserError(f"--input {path} may not be read by this user: change its rights")
    stat = path.stat()
    return InputFile(str(path), name, given, stat.st_size, str(stat.st_mtime_ns))


def _find_remote(given: str) -> list[InputFile]:
    file_system, path = _file_system(given)
    try:
        if glob.has_magic(path):
            found, base = file_system.glob(path, detail=True), ""
        elif file_system.isfile(path):
            return [_remote(file_system, path, PurePosixPath(path).name, given)]
        else:
            found, base = file_system.find(path, detail=True), path
    except Exception as error:  # each store raises its own
        raise UserError(
            f"--input {given} cannot be listed ({error}): check the address and the credentials"
        ) from None
    files = []
    for address, info in sorted(found.items()):
        name = PurePosixPath(address.removeprefix(base).lstrip("/"))
        if info["type"] == "file" and (not base or _visible(name)):
            files.append(_remote(file_system, address, str(name), given))
    return files


def _remote(file_system: Any, path: str, name: str, given: str) -> InputFile:
    info = file_system.info(path)
    version = next(
        (str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "updated", "created")
         if info.get(key)), "",
    )  # fmt: skip
    return InputFile(file_system.unstrip_protocol(path), name, given, info.get("size"), version)


def _file_system(address: str) -> tuple[Any, str]:
    import fsspec.core

    try:
        file_system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        packages = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
        packages |= dict.fromkeys(("http", "https"), "aiohttp requests")
        protocol = address.partition("://")[0]
        package = packages.get(protocol)
        remedy = f"run `pip install {package}`" if package else str(error)
        raise UserError(
            f"--input {address} needs a package that is not installed: {remedy}"
        ) from None
    except Exception as error:  # each store raises its own
        raise UserError(f"--input {address} cannot be opened ({error}): check it") from None
    return file_system, str(path)


def _is_remote(address: str) -> bool:
    return "://" in address and not address.startswith("file://")


def _suffix(address: str) -> str:
    return PurePosixPath(address).suffix.lower()


def _visible(name: PurePath) -> bool:
    return not any(part.startswith(".") for part in name.parts)
