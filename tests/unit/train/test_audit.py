import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import xxhash

from check_login_imports import FORBIDDEN
from electra_dist.checkpoint.layout import Manifest, manifest_text
from electra_dist.config import changes, files
from electra_dist.config.schema import RunConfig
from electra_dist.data.corpora import Corpora
from electra_dist.data.order import Skips, skipping
from electra_dist.data.stream import CorpusStream
from electra_dist.errors import UserError
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.files import read_json_lines
from electra_dist.train.audit import audit, render
from electra_dist.train.ledger import Ledger, chain
from electra_dist.train.state import RunState
from tests import made_up

Records = list[dict[str, Any]]


class MadeUpRun:
    """A run folder as training writes it, without training: the ledger is that of real batches."""

    def __init__(self, folder: Path, corpus: Path) -> None:
        words = [
            *("--data.corpus", str(corpus), "--data.sequence_length", "32"),
            *("--data.skips", "40", "48", "--data.prefetch_steps", "0"),
        ]
        self.config: RunConfig = files.load(None, words, recipe="tiny")
        self.corpora = Corpora.open(self.config.data)
        self.folder = folder
        folder.mkdir()
        (folder / "config.json").write_text(files.to_json(self.config))
        self.state = RunState(skipped=self.config.data.skips)
        self.begin()

    def begin(self, state: RunState | None = None) -> None:
        self.ledger = Ledger(Attempt.claim(self.folder))
        self.go_on(state or self.state)

    def go_on(self, state: RunState, skipped: Skips | None = None) -> None:
        skips = state.skipped if skipped is None else skipped
        self.state = RunState(step=state.step, position=state.position, skipped=skips)
        self.ledger.resumed(self.state)

    def steps(self, number: int) -> None:
        batch = self.config.batch
        with closing(CorpusStream(self.config, self.corpora)) as stream:
            for _ in range(number):
                state = self.state
                total = sum(
                    one.checksum
                    for one in stream.micro_batches(state.step, state.position, state.skipped)
                )
                size = batch.global_batch_size
                self.ledger.stepped(state.step + 1, state.position, size, total % 2**64)
                self.state = state.advanced(size)

    def save(self) -> RunState:
        folder = self.folder / "checkpoints" / f"step_{self.state.step:08d}"
        folder.mkdir(parents=True)
        state = json.dumps(
            self.state.to_json(
                config_fingerprint=changes.fingerprint(self.config),
                corpus_fingerprint=self.corpora.fingerprint,
            )
        ).encode()
        write_checkpoint(folder, state)
        return self.state


def write_checkpoint(folder: Path, state: bytes) -> None:
    (folder / "state.json").write_bytes(state)
    manifest = Manifest(
        format_version=1,
        step=json.loads(state)["step"],
        parameters={},
        shards=[],
        state_xxh3_128=xxhash.xxh3_128_hexdigest(state),
    )
    (folder / "manifest.json").write_text(manifest_text(manifest))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.corpus(tmp_path_factory.mktemp("corpus"), length=32, num_documents=60)


@pytest.fixture(scope="module")
def original(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed at step 4 after a checkpoint of 2; rolled back from 5 to 3 over its positions."""
    run = MadeUpRun(tmp_path_factory.mktemp("runs") / "run", corpus)
    run.steps(2)
    saved = run.save()
    run.steps(2)
    run.begin(saved)
    run.steps(1)
    saved = run.save()
    run.steps(2)
    run.go_on(saved, skipping(saved.skipped, saved.position, saved.position + 64))
    run.steps(3)
    run.save()
    run.steps(1)
    return run.folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def test_a_run_that_was_killed_resumed_and_rolled_back_holds(run: Path) -> None:
    told = []
    found = audit(run, [], progress=lambda done, total: told.append((done, total)))
    assert found.problems == []
    assert found.to_json() == {
        "run": str(run),
        "holds": True,
        "steps": 7,
        "positions": 7 * 32,
        "skipped": [[40, 48], [104, 168]],
        "attempts": 2,
        "resumes": [0, 2, 3],
        "repeated_steps": 4,
        "half_lines": 0,
        "checked_steps": [0, 7],
        "checkpoint": "step_00000006",
        "problems": [],
    }
    assert "224 positions were used exactly once each, but for 72 declared as skipped" in (
        render(found)
    )
    assert told == [(n, 7) for n in range(1, 8)]


def doctored(run: Path, change: Callable[[Records], object]) -> None:
    """Change records and rebuild the whole chain."""
    path = run / "ledger.jsonl"
    records = read_json_lines(path)
    change(records)
    last, lines = "", []
    for record in records:
        plain = {name: value for name, value in record.items() if name != "chain"}
        last = chain(last, plain)
        lines.append(json.dumps({**plain, "chain": last}) + "\n")
    path.write_text("".join(lines))


def set_in(line: int, **values: Any) -> Callable[[Records], None]:
    return lambda records: records[line - 1].update(values)


@pytest.mark.parametrize("line", [2, 4, 5, 7, 8, 9, 11, 14])
def test_a_changed_checksum_is_found_in_steps_that_count_and_in_repeated_ones(
    run: Path, line: int
) -> None:
    step = read_json_lines(run / "ledger.jsonl")[line - 1]["step"]
    doctored(run, set_in(line, checksum="0123456789abcdef"))
    (problem,) = audit(run, []).problems
    assert problem.startswith(f"ledger.jsonl, line {line}: step {step} was given tensors with")
    assert "0123456789abcdef, but the corpus gives" in problem
    assert "more lines" not in problem


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_in(3, position=64), "ledger.jsonl, line 3: step 2 used 32 samples from position 64"),
        (lambda records: records.pop(2), "ledger.jsonl, line 3: step 3 used"),
        (lambda records: records.pop(5), "ledger.jsonl, line 6: attempt 2 has no resume"),
        # The records could be true in themselves, of rows at other positions.
        (
            lambda records: [r.update(skipped=[[40, 48], [104, 136]]) for r in records[9:10]],
            "step_00000006 skips other positions before step 6 than the ledger",
        ),
        # The end cut off, so that it looks as if less had been trained.
        (
            lambda records: records.__delitem__(slice(-2, None)),
            "step_00000006 is of step 6, but the ledger ends with step 5",
        ),
    ],
)
def test_a_ledger_that_was_doctored_with_its_chain_is_refused(
    run: Path, change: Callable[[Records], object], words: str
) -> None:
    doctored(run, change)
    (problem,) = audit(run, []).problems
    assert problem.startswith(words)


def test_rows_of_other_positions_are_found_by_the_checksums(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    doctored(run, set_in(10, skipped=[[40, 48], [104, 136]]))
    (problem,) = audit(run, []).problems
    assert problem.startswith("ledger.jsonl, line 11: step 4 was given tensors")
    assert problem.endswith("; 3 more lines differ")


def test_a_line_taken_out_without_rebuilding_the_chain_is_refused(run: Path) -> None:
    path = run / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    found = audit(run, [])
    assert found.problems[0].startswith("ledger.jsonl, line 4: its hash does not follow")
    assert found.to_json()["holds"] is False


def test_only_the_steps_that_were_asked_for_are_made_again(run: Path) -> None:
    doctored(run, set_in(3, checksum="0" * 16))
    assert audit(run, [], range(2, 100)).problems == []
    assert audit(run, [], range(2, 100)).checked == range(2, 7)
    assert audit(run, [], range(1, 2)).problems != []


def test_a_kill_between_ledger_and_checkpoint_or_within_a_line_is_fine(
    corpus: Path, tmp_path: Path
) -> None:
    made = MadeUpRun(tmp_path / "run", corpus)
    made.steps(2)
    assert audit(made.folder, []).problems == []
    saved = made.save()
    made.steps(2)
    path = made.folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # step 4 is cut off
    assert audit(made.folder, []).problems == []
    made.begin(saved)
    made.steps(3)
    found = audit(made.folder, [])
    assert found.problems == []
    assert found.to_json()["repeated_steps"] == 1
    assert found.to_json()["half_lines"] == 1


def changed_state(run: Path, **values: Any) -> None:
    folder = run / "checkpoints" / "step_00000006"
    state = json.loads((folder / "state.json").read_text()) | values
    write_checkpoint(folder, json.dumps(state).encode())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"position": 200}, "stands at position 200, but step 6 ends at 192"),
        ({"step": 9}, "is of step 9, but the ledger ends with step 7"),
        ({"skipped_positions": [[40, 48]]}, "skips other positions before step 6 than the ledger"),
        ({"corpus_fingerprint": "abc"}, "was trained on corpus abc, and"),
        ({"config_fingerprint": "abc"}, "was trained with config abc, and config.json is"),
    ],
)
def test_a_checkpoint_that_stands_elsewhere_is_found(
    run: Path, values: dict[str, Any], words: str
) -> None:
    changed_state(run, **values)
    (problem,) = audit(run, []).problems
    assert problem.startswith("step_00000006 ")
    assert words in problem


def test_a_damaged_checkpoint_is_named(run: Path) -> None:
    (run / "checkpoints" / "step_00000006" / "state.json").write_text("{}")
    assert "state.json is damaged" in audit(run, []).problems[0]


def test_the_corpus_may_lie_elsewhere_and_nothing_else_may_differ(
    run: Path, corpus: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(corpus)
    assert audit(run, ["--data.corpus", str(moved)]).problems == []
    with pytest.raises(UserError, match=r"an audit is of the run as it was, not with seed: 0 -> 1"):
        audit(run, ["--seed", "1"])
    with pytest.raises(UserError, match="is not a run folder"):
        audit(tmp_path, [])


def test_neither_audit_nor_trace_needs_torch(run: Path) -> None:
    forbidden = [name for name in FORBIDDEN if name not in ("numpy", "safetensors", "tokenizers")]
    program = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(',')));"
        "from electra_dist.cli import main; sys.exit(main(sys.argv[2:]))"
    )
    for words in (
        ["corpus", "audit", str(run), "--json"],
        ["trace", str(run / "config.json"), "--steps", "0:2", "--world-size", "2", "--json"],
    ):
        command = [sys.executable, "-c", program, ",".join(forbidden), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        json.loads(done.stdout)
