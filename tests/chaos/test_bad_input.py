"""What a user can get wrong, through the command line: exit code 2 and one sentence, no trace.

What is found before ranks meet is called in this process; what needs a run is a real
`python -m electra_dist`. A damaged checkpoint is no mistake of the user: training falls back.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xxhash

from electra_dist.cli import main
from electra_dist.config import files
from electra_dist.launch.local import free_port
from tests.made_up import SMALLEST, text

pytestmark = pytest.mark.chaos

TINY = (
    SMALLEST
    + """\
[batch]
global_batch_size = 8
micro_batch_size = 4
[schedule]
num_steps = 6
warmup_steps = 1
[engine]
kind = "reference"
threads_per_rank = 1
timeout_seconds = 60.0
[checkpoint]
every_steps = 2
[metrics]
log_every = 1
eval_every = 6
tensorboard = false
"""
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A corpus packed at 32 tokens, a config for it, and a finished run with three checkpoints."""

    corpus: Path
    config: Path
    run: Path

    def copy_of_run(self, folder: Path) -> Path:
        """A copy that a test may damage."""
        return Path(shutil.copytree(self.run, folder / "run"))


def electra_dist(*words: str | Path, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "electra_dist", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def make_corpus(folder: Path, num_documents: int = 80) -> Path:
    """Build and pack a corpus by the command line, in this process."""
    folder.mkdir(parents=True)
    source, corpus = folder / "text.txt", folder / "corpus"
    source.write_text(text(num_documents), encoding="utf-8")
    build = ["corpus", "build", "--input", source, "--out", corpus, "--held-out-share", "0.1"]
    assert main([str(word) for word in [*build, "--vocab-size", "200", "--workers", "1"]]) == 0
    assert main(["corpus", "pack", str(corpus), "--length", "32"]) == 0
    return corpus


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("bad_input")
    corpus = make_corpus(folder / "made")
    config = folder / "tiny.toml"
    config.write_text(TINY.format(corpus=corpus))
    done = electra_dist("pretrain", config, "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return Place(corpus=corpus, config=config, run=folder / "run")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """`pretrain` in this process takes over signals; pytest wants them back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


Refused = Callable[..., str]


def the_sentence(stderr: str) -> str:
    """What the command said, which must be one line and no trace."""
    assert stderr.startswith("electra-dist: "), stderr
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    assert "Error" not in stderr  # the name of an exception tells a user nothing
    return stderr


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Call the command line here; it must exit 2, and its sentence is returned."""

    def call(*words: str | Path) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return the_sentence(err)

    return call


def contents(folder: Path) -> dict[str, str]:
    """Every file below by name, with a hash of what it holds."""
    return {
        str(path.relative_to(folder)): xxhash.xxh3_64_hexdigest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[batch]\nglobal_bach_size = 8\n", "unknown key batch.global_bach_size; did you mean"),
        ("[bacth]\nglobal_batch_size = 8\n", "unknown key bacth; did you mean batch?"),
        ('[batch]\nglobal_batch_size = "many"\n', "batch.global_batch_size = 'many'"),
        ("[data]\ncorpus = 7\n", "data.corpus = 7"),
        ("batch = 8\n", "write [batch]"),
        ('recipe = "huge"\n', "choose one of tiny, small"),
        ("recipe = tiny\n", "not a readable TOML file"),
        ("[batch]\nglobal_batch_size = 12\nmicro_batch_size = 8\n", "is not a multiple of"),
        ("[schedule]\nnum_steps = 0\n", "schedule.num_steps = 0"),
        ("[optim]\nlearning_rate = nan\n", "optim.learning_rate = nan"),
    ],
)
def test_a_wrong_config(toml: str, says: str, tmp_path: Path, refused: Refused) -> None:
    config = tmp_path / "config.toml"
    config.write_text(toml)
    sentence = refused("pretrain", config, "--out", tmp_path / "run")
    assert says in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data.corpus", "nowhere"], "nowhere is no corpus"),
        (["--data.sequence_length", "64"], "corpus pack"),
        (["--objective.mask_prob", "0.2"], "--mask-prob 0.2"),
        (["--objective.name", "gan"], "objective.name = 'gan'"),
        (["--model.vocab_size", "30522"], "model.vocab_size = 30522, but the corpus"),
        (["--batch.micro_batch_size", "3"], "batch.micro_batch_size = 3"),
        (["--batch.micro_batch_size", "three"], "--batch.micro_batch_size three"),
        (["--batch.micro_batch_siz", "4"], "did you mean --batch.micro_batch_size?"),
        (["--micro_batch_size", "4"], "unrecognized arguments: --micro_batch_size"),
        (["--engine.zero_stage", "4"], "one of 0, 1, 2, 3"),
        (["--engine.precision", "int8"], "one of fp32, bf16, fp16"),
        (
            ["--engine.kind=deepspeed", "--engine.zero_stage=0", "--engine.precision=bf16"],
            "wrong at engine.zero_stage = 0",
        ),
        (["--engine.deepspeed_config", "nowhere.json"], "'nowhere.json' does not exist"),
        (["--nproc", "-2"], "--nproc -2"),
    ],
)
def test_a_wrong_word(
    words: list[str], says: str, place: Place, tmp_path: Path, refused: Refused
) -> None:
    sentence = refused("pretrain", place.config, "--out", tmp_path / "run", *words)
    assert says in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("deepspeed_config", "says"),
    [
        ({"zero_optimization": {"stage": 3}}, "stage = 3, but engine.zero_stage = 1"),
        ({"train_batch_size": 8}, "'train_batch_size'"),
        ([], "must hold a JSON object"),
        (None, "is not readable JSON"),
    ],
)
def test_a_wrong_deepspeed_config(
    deepspeed_config: object, says: str, place: Place, tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path / "ds.json"
    path.write_text("{" if deepspeed_config is None else json.dumps(deepspeed_config))
    words = ["--engine.kind", "deepspeed", "--engine.zero_stage", "1"]
    words += ["--engine.deepspeed_config", str(path)]
    assert says in refused("pretrain", place.config, "--out", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_there(tmp_path: Path, refused: Refused) -> None:
    sentence = refused("pretrain", tmp_path / "config.toml", "--out", tmp_path / "run")
    assert f"{tmp_path}/config.toml does not exist" in sentence


def test_a_run_without_a_corpus(tmp_path: Path, refused: Refused) -> None:
    sentence = refused("pretrain", "--recipe", "tiny", "--out", tmp_path / "run")
    assert "data.corpus is not set" in sentence


def test_more_ranks_than_micro_batches(place: Place, tmp_path: Path) -> None:
    done = electra_dist("pretrain", place.config, "--out", tmp_path / "run", "--nproc", "3")
    assert done.returncode == 2
    assert "--nproc 3: a step has 2 micro-batches" in the_sentence(done.stderr)
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_one_rank_alone_finds(place: Place, tmp_path: Path) -> None:
    """Its node does not mount the corpus, say: all end at once, and one sentence names the rank."""
    environ = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "electra_dist", "pretrain", str(place.config)]
    command += ["--out", str(tmp_path / "run"), "--data.corpus"]
    ranks = [
        subprocess.Popen(
            [*command, str(corpus)],
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, corpus in enumerate((place.corpus, tmp_path / "not_mounted"))
    ]
    # Left to its deadline, the other rank would give up by itself with exit code 1.
    said = [rank.communicate(timeout=240.0)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert f"rank 1: {tmp_path}/not_mounted is no corpus" in the_sentence(said[0])
    assert said[1] == ""
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------- corpora


def no_mask_token(folder: Path) -> list[str]:
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nba\n")
    return ["--tokenizer", f"{folder}/vocab.txt"]


def blank_text(folder: Path) -> list[str]:
    (folder / "blank.txt").write_text("\n \n\n")
    return ["--input", f"{folder}/blank.txt"]


def broken_json(folder: Path) -> list[str]:
    lines = [json.dumps({"text": "ba de ki"})] * 9 + ['{"text": "ba de']
    (folder / "broken.jsonl").write_text("\n".join(lines))
    return ["--input", f"{folder}/broken.jsonl", "--source", "jsonl"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (blank_text, "holds no text"),
        (lambda folder: ["--input", f"{folder}/missing.txt"], "missing.txt does not exist"),
        (lambda folder: ["--input", f"{folder}/*.gz"], "leads to no file"),
        (lambda _: ["--source", "parquett"], "--source 'parquett' is unknown"),
        (lambda folder: ["--tokenizer", f"{folder}/none.json"], "none.json does not exist"),
        (no_mask_token, "vocab.txt lacks [MASK]"),
        (broken_json, "1 of 10 records are bad"),
        (lambda _: ["--held-out-share", "1.5"], "held_out_share 1.5"),
    ],
)
def test_a_corpus_that_cannot_be_built(
    words: Callable[[Path], list[str]], says: str, place: Place, tmp_path: Path, refused: Refused
) -> None:
    source = place.corpus.with_name("text.txt")
    build = ["corpus", "build", "--input", source, "--workers", "1", "--vocab-size", "100"]
    out = tmp_path / "corpus"
    assert says in refused(*build, "--out", out, *words(tmp_path))
    assert not out.exists()


def test_a_corpus_is_not_written_over(place: Place, refused: Refused) -> None:
    before = contents(place.corpus)
    source = place.corpus.with_name("text.txt")
    assert "exists already" in refused("corpus", "build", "--input", source, "--out", place.corpus)
    assert contents(place.corpus) == before


def test_a_corpus_with_a_file_cut_short(place: Place, tmp_path: Path, refused: Refused) -> None:
    corpus = shutil.copytree(place.corpus, tmp_path / "corpus")
    tokens = corpus / "tokens_00000.safetensors"
    os.truncate(tokens, tokens.stat().st_size - 1)
    words = ["pretrain", place.config, "--data.corpus", corpus, "--out", tmp_path / "run"]
    assert "tokens_00000.safetensors has" in refused(*words)


# --------------------------------------------------------------------------------------- runs


def test_a_resume_with_another_config(place: Place, tmp_path: Path, refused: Refused) -> None:
    run = place.copy_of_run(tmp_path)
    before = contents(run)
    sentence = refused("pretrain", place.config, "--out", run, "--optim.learning_rate", "0.1")
    assert "optim.learning_rate: 0.001 -> 0.1" in sentence
    assert contents(run) == before


def test_a_resume_on_another_corpus(place: Place, tmp_path: Path) -> None:
    """The corpus was built anew from other text under the same path: its vocabulary fits."""
    run = place.copy_of_run(tmp_path)
    old = make_corpus(tmp_path / "made")
    config = run / "config.json"
    config.write_text(config.read_text().replace(str(place.corpus), str(old)))
    checkpoints = contents(run / "checkpoints")
    assert files.read_json(config).data.corpus == str(old)
    shutil.rmtree(old.parent)
    tokenizer = ["--tokenizer", f"{place.corpus}/tokenizer.json"]
    (tmp_path / "other.txt").write_text(text(80, seed=0)[2000:], encoding="utf-8")
    build = ["corpus", "build", "--input", f"{tmp_path}/other.txt", "--out", str(old), *tokenizer]
    assert main([*build, "--held-out-share", "0.1", "--workers", "1"]) == 0
    assert main(["corpus", "pack", str(old), "--length", "32"]) == 0

    done = electra_dist("pretrain", "--out", run)
    assert done.returncode == 2
    assert "trained on another corpus" in the_sentence(done.stderr)
    assert contents(run / "checkpoints") == checkpoints


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


SHARD = "shard_00000.safetensors"
DAMAGES = [
    pytest.param(SHARD, flip_a_bit, id="a flipped bit"),
    pytest.param(SHARD, cut, id="cut short"),
    pytest.param(SHARD, Path.unlink, id="a lost file"),
    pytest.param("state.json", flip_a_bit, id="state.json"),
    pytest.param("manifest.json", flip_a_bit, id="manifest.json"),
]


def test_training_falls_back_to_the_newest_checkpoint_that_verifies(
    place: Place, tmp_path: Path
) -> None:
    """Step 6 has a flipped bit, step 4 is cut short: training goes on from step 2, to the same."""
    run = place.copy_of_run(tmp_path)
    four, six = (run / "checkpoints" / f"step_0000000{step}" for step in (4, 6))
    cut(four / SHARD)
    flip_a_bit(six / SHARD)
    damaged = [contents(folder) for folder in (four, six)]

    done = electra_dist("pretrain", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for folder in (four, six):
        assert f"{folder.name} does not verify and is set aside" in done.stderr
    assert [contents(folder.with_name(f"{folder.name}.bad")) for folder in (four, six)] == damaged

    events = [event for event in records(run / "events.jsonl") if event["attempt"] == 2]
    assert [(event["event"], event.get("checkpoint"), event.get("step")) for event in events] == [
        ("bad_checkpoint", "step_00000006", None),
        ("bad_checkpoint", "step_00000004", None),
        ("resume", None, 2),
        ("save", None, 4),
        ("save", None, 6),
        ("stop", None, 6),
    ]
    assert f"{six.name}/{SHARD}" in events[0]["cause"]
    assert f"{four.name}/{SHARD}" in events[1]["cause"]
    ended = json.loads((run / "attempts" / "0002" / "exit.json").read_text())
    assert (ended["reason"], ended["checkpoint"]) == ("finished", "step_00000006")
    assert main(["checkpoint", "diff", str(run), str(place.run)]) == 0
    assert steps(run) == steps(place.run)


def steps(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock says."""
    return [
        {name: value for name, value in line.items() if name != "timing"}
        for line in records(run / "metrics.jsonl")
    ]


def test_when_no_checkpoint_verifies_nothing_is_touched(place: Place, tmp_path: Path) -> None:
    run = place.copy_of_run(tmp_path)
    names = ("step_00000002", "step_00000004", "step_00000006")
    for name, (file, damage) in zip(
        names, ((SHARD, flip_a_bit), (SHARD, cut), ("state.json", flip_a_bit)), strict=True
    ):
        damage(run / "checkpoints" / name / file)
    kept = ("checkpoints", "metrics.jsonl", "config.json", "ledger.jsonl", "events.jsonl")
    before = {name: value for name, value in contents(run).items() if name.startswith(kept)}

    done = electra_dist("pretrain", "--out", run)
    assert done.returncode == 2
    assert "no checkpoint verifies" in the_sentence(done.stderr)
    after = {name: value for name, value in contents(run).items() if name.startswith(kept)}
    assert after == before
    ended = json.loads((run / "attempts" / "0002" / "exit.json").read_text())
    assert (ended["reason"], ended["exit_code"]) == ("failed", 2)


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_the_commands_on_a_damaged_checkpoint(
    file: str,
    damage: Callable[[Path], None],
    place: Place,
    tmp_path: Path,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = place.copy_of_run(tmp_path)
    newest, older = (run / "checkpoints" / f"step_0000000{step}" for step in (6, 4))
    damage(newest / file)
    before = contents(run)
    for command in (
        ["checkpoint", "diff", newest, older],
        ["checkpoint", "diff", older, newest],
        ["checkpoint", "export", "hf", newest, "--out", tmp_path / "hf"],
        ["checkpoint", "export", "hf", run, "--out", tmp_path / "hf"],
    ):
        assert f"{newest.name}/{file}" in refused(*command)
    assert main(["checkpoint", "verify", str(newest)]) == 1  # the answer is: not what was written
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert f"{newest.name}/{file}" in out
    assert main(["checkpoint", "verify", str(older)]) == 0
    assert contents(run) == before
    assert not (tmp_path / "hf").exists()


def test_an_export_without_the_run_s_own_tokenizer(
    place: Place, tmp_path: Path, refused: Refused
) -> None:
    run = place.copy_of_run(tmp_path)
    corpus = shutil.copytree(place.corpus, tmp_path / "corpus")
    config = run / "config.json"
    config.write_text(config.read_text().replace(str(place.corpus), str(corpus)))
    tokenizer = corpus / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"[UNK]"', '"[unk]"', 1))
    sentence = refused("checkpoint", "export", "hf", run, "--out", tmp_path / "hf")
    assert f"{tokenizer} is not the tokenizer" in sentence
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--text", "sentence", "--label", "y"], "there is no column 'y'"),
        (["--text", "words", "--label", "label"], "there is no column 'words'"),
        (["--task", "sst3"], "task 'sst3' is not one of"),
        (["--text", "sentence"], "--label"),
        (["--text", "sentence", "--label", "label", "--max-length", "9999"], "max_length 9999"),
        (["--text", "sentence", "--label", "label", "--seeds", "a few"], "'a few'"),
        (["--text", "sentence", "--label", "label", "--dev", "none.tsv"], "none.tsv"),
    ],
)
def test_fine_tuning(
    words: list[str], says: str, place: Place, tmp_path: Path, refused: Refused
) -> None:
    data = tmp_path / "data.tsv"
    data.write_text("sentence\tlabel\nba de\t0\nki lo\t1\n")
    tune = ["finetune", "--model", place.run, "--train", data, "--dev", data]
    assert says in refused(*tune, "--out", tmp_path / "tuned", *words)
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["stop"],
        ["checkpoint", "list"],
        ["checkpoint", "verify"],
        ["corpus", "info"],
        ["corpus", "pack"],
    ],
)
def test_a_folder_of_something_else(words: list[str], tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "notes.txt").write_text("not yours")
    before = contents(tmp_path)
    assert str(tmp_path) in refused(*words, tmp_path)
    assert f"{tmp_path}/missing" in refused(*words, tmp_path / "missing")
    assert contents(tmp_path) == before


def test_a_run_into_a_corpus(place: Place, refused: Refused) -> None:
    sentence = refused("pretrain", place.config, "--out", place.corpus)
    assert f"{place.corpus} is a corpus" in sentence


def test_stopping_a_run_that_has_ended(place: Place, refused: Refused) -> None:
    assert "its last attempt ended (finished) at step 6" in refused("stop", place.run)
    assert not (place.run / "STOP").exists()


def test_an_audit_of_steps_that_were_not_made(place: Place, refused: Refused) -> None:
    sentence = refused("corpus", "audit", place.run, "--steps", "6:9")
    assert "--steps 6:9 lies beyond the 6 updates" in sentence


def test_a_corpus_on_a_disk_that_takes_none(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "a.txt").write_text(text(3))
    sentence = refused("corpus", "build", "--input", tmp_path / "a.txt", "--out", "/proc/none/c")
    assert "--out /proc/none/c cannot be made" in sentence


def test_a_trace_takes_the_run_or_its_config(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for given in (place.run, place.run / "config.json"):
        assert main(["trace", str(given), "--steps", "0:2", "--world-size", "2"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""
