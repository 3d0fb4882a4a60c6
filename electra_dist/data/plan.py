"""May a build go on from the parts that an earlier one left? Only if it would write the same ones.

CORPUS.building/ holds
  plan.json        what parts depend on: the input, how it is read, the tokenizer
  tokenizer.json
  parts/           part_000123.safetensors; complete.json once there are all
  quarantine.jsonl
  corpus/          the corpus, which one rename makes appear
  committing.json  just before that
"""

import fcntl
import importlib.metadata
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from electra_dist.data import near_duplicates, parts, records, store
from electra_dist.data.build_options import BuildOptions
from electra_dist.data.parts import SourceInput
from electra_dist.data.tokenize import tokenizer_file, tokenizer_sha256
from electra_dist.errors import UserError

log = logging.getLogger(__name__)

PARTS_VERSION = 1
"""Raised when parts of an older version of this package would no longer be the same."""


class BuildFolder:
    """CORPUS.building: what is in it already, and where things go. A context: one build at a time.

    Raises UserError on entering while another build of this machine is at work there.
    """

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(out.name + ".building")
        self.parts = self.path / "parts"
        self.tokenizer = self.path / "tokenizer.json"
        self.quarantine = self.path / "quarantine.jsonl"
        self.corpus = self.path / "corpus"
        self._out = out
        self._plan = self.path / "plan.json"
        self._complete = self.parts / "complete.json"
        self._committing = self.path / "committing.json"
        self._descriptor = -1

    def __enter__(self) -> "BuildFolder":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--out {self._out} cannot be made ({error.strerror}): give a folder on a disk that"
                " you may write to"
            ) from None
        self._descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise UserError(
                f"{self.path} is in use by another build: wait for it, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            log.debug("%s cannot be locked", self.path, exc_info=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def open(self, plan: dict[str, Any]) -> None:
        """Keeps the parts of an equal plan; else starts anew, and says so where there were some."""
        found = _read_json(self._plan)
        if found == plan:
            if number := sum(1 for _ in self.parts.glob("part_*")):
                log.warning("%s: going on with %s parts of an earlier build", self.path, number)
            return
        if found is not None:
            changed = [name for name in plan if found.get(name) != plan[name]]
            log.warning(
                "%s: %s changed since the build that was broken off; starting anew",
                self.path,
                " and ".join(changed) or "the program",
            )
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        self.parts.mkdir()
        store.write_json(self._plan, plan)

    def has_part(self, number: int) -> bool:
        """Whether that part is there, which is to say that it is whole."""
        return parts.part_path(self.parts, number).exists()

    @property
    def num_parts(self) -> int | None:
        """How many parts there are in all; None as long as some may lack."""
        found = _read_json(self._complete)
        return None if found is None else int(found["parts"])

    def mark_complete(self, num_parts: int) -> None:
        """Notes that all parts are there: the input need not be read again."""
        store.write_json(self._complete, {"parts": num_parts})

    def start_corpus(self) -> Path:
        """An empty folder for the corpus; what a merge that was killed left in it goes."""
        shutil.rmtree(self.corpus, ignore_errors=True)
        self.corpus.mkdir()
        return self.corpus

    def commit(self, manifest: dict[str, Any]) -> None:
        """Makes the corpus appear and removes what it was made from."""
        store.write_json(self._committing, {"fingerprint": manifest["fingerprint"]})
        store.commit_folder(self.corpus, self._out)
        shutil.rmtree(self.path)

    def finish_commit(self) -> dict[str, Any] | None:
        """The manifest of a corpus that appeared just before its build was killed, else None."""
        committing = _read_json(self._committing)
        manifest = _read_json(self._out / "manifest.json")
        if not committing or not manifest or self.corpus.exists():
            return None
        if manifest.get("fingerprint") != committing["fingerprint"]:
            return None
        shutil.rmtree(self.path)
        return dict(manifest)


def plan_of(options: BuildOptions, inputs: Sequence[SourceInput]) -> dict[str, Any]:
    """All that decides what is in the parts, JSON-able."""
    tokenizer: dict[str, Any] = {
        "lowercase": options.lowercase,
        "strip_accents": options.strip_accents,
    }
    if options.tokenizer == "train":
        tokenizer |= {
            "vocab_size": options.vocab_size,
            "vocab_sample_bytes": options.vocab_sample_bytes,
        }
    else:
        tokenizer["sha256"] = tokenizer_sha256(tokenizer_file(options.tokenizer))
    versions = {name: importlib.metadata.version(name) for name in ("tokenizers",)}
    near = {"num_hashes": near_duplicates.NUM_HASHES} if options.dedup == "near" else None
    return {
        "version": {"parts": PARTS_VERSION, **versions},
        "part size": {"part_bytes": parts.PART_BYTES, "piece_bytes": records.PIECE_BYTES},
        "the tokenizer": tokenizer,
        "near-duplicate signatures": near,
        "the input": [
            {
                "kind": source.kind,
                "options": asdict(source.options),
                "files": [[f.address, f.num_bytes, f.version] for f in source.files],
            }
            for source in inputs
        ],
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
