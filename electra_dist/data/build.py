"""Building a corpus: text to token shards, through parts that survive a kill (design record 5).

    cut into pieces (this process) -> parts (worker processes) -> merge (this process) -> rename

The bytes written depend on the input and the options only, never on the number of workers, on
kills, on the time or the machine. Memory holds a few pieces and some bytes a document.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from electra_dist.data import sources, store
from electra_dist.data.build_options import BuildOptions
from electra_dist.data.merge import manifest_counts, survey, write_shards
from electra_dist.data.parts import EncoderSetup, PartTask, SourceInput, part_tasks, total_bytes
from electra_dist.data.plan import BuildFolder, plan_of
from electra_dist.data.quarantine import Quarantine
from electra_dist.data.sampling import sample_sentences
from electra_dist.data.shards import ShardWriter
from electra_dist.data.tokenize import (
    TokenizerFacts,
    describe,
    load_tokenizer,
    tokenizer_sha256,
    word_start_rule,
)
from electra_dist.data.vocab import train_wordpiece
from electra_dist.data.workers import write_parts
from electra_dist.errors import UserError
from electra_dist.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build made. Documents, sentences and tokens count the train split."""

    folder: Path
    fingerprint: str
    vocab_size: int
    documents: int
    sentences: int
    tokens: int
    held_out_documents: int
    held_out_tokens: int
    duplicates: int
    """Documents left out because an earlier one has the same text."""
    near_duplicates: int
    """Documents left out because an earlier one has much the same words."""
    empty_documents: int
    """Documents without a token, skipped."""
    quarantined: int
    """Bad records, listed in quarantine.jsonl."""


Report = Callable[[Progress], None]
"""Called now and then with how far the build is."""


def build_corpus(options: BuildOptions, report: Report | None = None) -> BuildSummary:
    """Builds the corpus `options.out`, or goes on with a build of it that was broken off.

    With num_workers > 1 the calling script needs the `if __name__ == "__main__"` guard (workers are
    spawned). Raises UserError when the folder exists, an input or tokenizer is missing or wrong, no
    document is left, a worker was killed, or the share of bad records is over the limit;
    CORPUS.building/quarantine.jsonl is then left for reading. OSError: a disk is full or fails.
    """
    folder = BuildFolder(options.out)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        manifest = folder.finish_commit()
        if manifest is None:
            raise UserError(f"{options.out} exists already: remove it or choose another --out")
        return _summary(options.out, manifest)
    inputs = [
        SourceInput(
            kind=spec.kind,
            options=spec.options,
            files=sources.find_files(spec.inputs, spec.kind),
        )
        for spec in options.sources
    ]
    report = report or (lambda _: None)
    plan = plan_of(options, inputs)
    try:
        with folder:
            folder.open(plan)
            facts = _tokenizer(options, inputs, folder, report)
            if folder.num_parts is None:
                folder.mark_complete(_write_missing_parts(options, inputs, folder, report))
            manifest = _merge(options, inputs, folder, facts, report)
            folder.commit(manifest)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            error.filename = str(folder.path)  # a write itself does not say where
        raise
    return _summary(options.out, manifest)


def _summary(folder: Path, manifest: dict[str, Any]) -> BuildSummary:
    train, held_out = manifest["splits"]["train"], manifest["splits"]["held_out"]
    return BuildSummary(
        folder=folder,
        fingerprint=manifest["fingerprint"],
        vocab_size=manifest["vocab_size"],
        documents=train["documents"],
        sentences=train["sentences"],
        tokens=train["tokens"],
        held_out_documents=held_out["documents"],
        held_out_tokens=held_out["tokens"],
        duplicates=manifest["duplicates"],
        near_duplicates=manifest["near_duplicates"],
        empty_documents=manifest["empty_documents"],
        quarantined=manifest["quarantine"]["records"],
    )


def _tokenizer(
    options: BuildOptions, inputs: Sequence[SourceInput], folder: BuildFolder, report: Report
) -> TokenizerFacts:
    def show(num_bytes: int) -> None:
        report(Progress(phase="vocabulary", num_bytes=num_bytes, total_bytes=None))

    if not folder.tokenizer.exists():
        if options.tokenizer == "train":
            tokenizer = train_wordpiece(
                sample_sentences(inputs, options.vocab_sample_bytes, show),
                options.vocab_size,
                options.lowercase,
                options.strip_accents,
            )
        else:
            tokenizer = load_tokenizer(options.tokenizer, options.lowercase, options.strip_accents)
        store.write_bytes(folder.tokenizer, tokenizer.to_str(pretty=True).encode())
    return describe(load_tokenizer(folder.tokenizer))


def _write_missing_parts(
    options: BuildOptions, inputs: Sequence[SourceInput], folder: BuildFolder, report: Report
) -> int:
    """Returns the number of parts."""
    num_parts = found_bytes = fresh_bytes = num_tokens = 0
    total = total_bytes(inputs)

    def show() -> None:
        report(
            Progress(
                phase="encoding",
                num_bytes=found_bytes + fresh_bytes,
                total_bytes=total,
                found_bytes=found_bytes,
                num_tokens=num_tokens,
            )
        )

    def missing() -> Iterator[PartTask]:
        nonlocal num_parts, found_bytes
        for task in part_tasks(inputs):
            num_parts = task.number + 1
            if folder.has_part(task.number):
                found_bytes += task.num_bytes
                show()
            else:
                yield task

    setup = EncoderSetup(
        folder=folder.parts,
        tokenizer=folder.tokenizer,
        inputs=tuple((source.kind, source.options) for source in inputs),
        signatures=options.dedup == "near",
    )
    for task, _, tokens in write_parts(missing(), setup, options.num_workers):
        fresh_bytes += task.num_bytes
        num_tokens += tokens
        show()
    return num_parts


def _merge(
    options: BuildOptions,
    inputs: Sequence[SourceInput],
    folder: BuildFolder,
    facts: TokenizerFacts,
    report: Report,
) -> dict[str, Any]:
    """Writes all files of the corpus; returns the manifest."""
    num_parts = folder.num_parts
    assert num_parts is not None
    corpus = folder.start_corpus()
    total, merged_bytes = total_bytes(inputs), 0

    def show(num_bytes: int) -> None:
        nonlocal merged_bytes
        merged_bytes += num_bytes
        report(Progress(phase="merging", num_bytes=merged_bytes, total_bytes=total))

    show(0)
    with Quarantine(folder.quarantine) as quarantine:
        surveyed = survey(options, inputs, folder.parts, num_parts, quarantine)
    rule = word_start_rule(load_tokenizer(folder.tokenizer))
    writers = {
        split: ShardWriter(corpus, prefix, facts.vocab_size, rule, options.shard_tokens)
        for split, prefix in store.TOKEN_FILE_PREFIX.items()
    }
    write_shards(options, folder.parts, surveyed, writers, show)
    if writers["train"].num_documents == 0:
        given = " ".join(word for spec in options.sources for word in spec.inputs)
        raise UserError(
            f"--input {given} holds no document to train on"
            f" ({writers['held_out'].num_documents} held out, {surveyed.total('empty_documents')}"
            f" empty, {quarantine.num_bad} bad records): give files with text"
        )
    store.write_bytes(corpus / "tokenizer.json", folder.tokenizer.read_bytes())
    os.replace(folder.quarantine, corpus / "quarantine.jsonl")
    manifest = _manifest(facts, corpus, writers, quarantine)
    manifest |= manifest_counts(options, inputs, surveyed)
    store.write_json(corpus / "manifest.json", manifest)
    return manifest


def _manifest(
    facts: TokenizerFacts, corpus: Path, writers: dict[str, ShardWriter], quarantine: Quarantine
) -> dict[str, Any]:
    sha256 = tokenizer_sha256(corpus / "tokenizer.json")
    unigram = store.write_arrays(
        corpus / "unigram.safetensors", {"counts": writers["train"].unigram_counts}
    )
    splits = {split: writer.summary() for split, writer in writers.items()}
    dtype = np.dtype(facts.dtype).name
    hashes = sorted(
        f"{s['file']} {s['xxh3_128']}" for part in splits.values() for s in part["shards"]
    )
    return {
        "format_version": store.FORMAT_VERSION,
        "fingerprint": store.fingerprint_of([*hashes, sha256, dtype]),
        "tokenizer": {
            "file": "tokenizer.json",
            "sha256": sha256,
            "lowercase": facts.lowercase,
            "strip_accents": facts.strip_accents,
            "kind": facts.kind,
            "special_tokens": facts.special_tokens,
        },
        "vocab_size": facts.vocab_size,
        "dtype": dtype,
        "special_ids": asdict(facts.special_ids),
        "splits": splits,
        "unigram": asdict(unigram),
        "quarantine": quarantine.summary(),
    }
