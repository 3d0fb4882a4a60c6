"""The command line: its words, its one-sentence errors, its JSON, and what it does not import."""

import argparse
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from check_login_imports import FORBIDDEN
from electra_dist.checkpoint.layout import Manifest, ShardRecord, manifest_text
from electra_dist.cli import main
from electra_dist.cli.main import make_parser, split_overrides
from electra_dist.config import changes, files
from electra_dist.finetune.config import FinetuneConfig
from tests.made_up import text

HELP = {
    "": ("corpus", "pretrain", "status", "checkpoint", "finetune", "predict"),
    "corpus": ("build", "pack", "verify", "info"),
    "corpus build": (
        *("--source", "--input", "--tokenizer", "--vocab-size", "--cased", "--strip-accents"),
        *("--held-out-share", "--max-quarantine-share", "--workers", "--shard-tokens", "--out"),
        *("--field", "--splitter", "--dedup", "--near-threshold", "--license", "--weight"),
        *("--sources", "--vocab-sample-bytes", "--max-document-bytes"),
    ),
    "corpus pack": ("CORPUS", "--length", "--mode", "--seed", "--workers", "--mask-prob"),
    "corpus verify": ("CORPUS",),
    "corpus audit": ("RUN", "--steps", "--json"),
    "trace": ("CONFIG.toml", "--steps", "--world-size", "--ranks-per-node", "--recipe", "--json"),
    "plan": (
        *("CONFIG.toml", "--recipe", "--nodes", "--gpus-per-node", "--device", "--json"),
        *("--tflops", "--mfu", "--mtbf-hours", "--write-gb-per-s", "--restart-minutes"),
    ),
    "corpus info": ("CORPUS", "--json", "--plot"),
    "vocab": ("train", "report"),
    "vocab train": (
        *("--input", "--source", "--field", "--size", "--sample-bytes", "--cased"),
        *("--strip-accents", "--held-out-share", "--out", "--json"),
    ),
    "vocab report": ("--tokenizer", "--input", "--source", "--sample-bytes", "--json"),
    "pretrain": (
        *("--launcher", "--max-restarts", "--time-limit"),
        *("CONFIG.toml", "--recipe", "--out", "--nproc", "--data.corpus", "--engine.zero_stage"),
        *("--batch.global_batch_size", "--checkpoint.every_steps", "--seed", "config docs"),
        *("--init-from", "--keep-moments", "--resume-from", "--exclude-bad-nodes"),
    ),
    "submit": ("slurm", "submitit", "deepspeed", "mpi", "torchrun"),
    "submit submitit": (
        *("CONFIG.toml", "--recipe", "--out", "--cluster"),
        *("--nodes", "--gpus-per-node", "--time", "--dry-run"),
    ),
    "submit slurm": (
        *("CONFIG.toml", "--out", "--cluster", "--nodes", "--gpus-per-node", "--time"),
        *("--chain", "--dry-run", "--test-only"),
    ),
    "submit deepspeed": ("--hostfile", "--launcher", "--launcher-args", "--master-addr", "--out"),
    "submit mpi": ("--hostfile", "--mpirun-args", "--master-port", "--dry-run"),
    "submit torchrun": ("CONFIG.toml", "--recipe", "--hostfile", "--master-addr", "--dry-run"),
    "requeue": ("RUN", "--after-attempt", "--signals", "--code", "--max-fruitless"),
    "doctor": ("--shared", "--ranks", "--seconds", "--verdict", "--json"),
    "stop": ("RUN",),
    "status": ("RUN", "--json"),
    "report": ("RUN", "RUN/report.html"),
    "config": ("show", "docs"),
    "config show": ("CONFIG.toml", "--recipe"),
    "config docs": ("every knob",),
    "checkpoint": ("list", "verify", "diff", "average", "prune", "export", "import"),
    "checkpoint list": ("RUN", "--json"),
    "checkpoint verify": ("CKPT",),
    "checkpoint diff": ("CKPT", "exit 1 if they differ"),
    "checkpoint export": ("hf", "universal", "CKPT|RUN", "--out"),
    "checkpoint average": ("RUN|CKPT", "--out", "--last", "--ema"),
    "checkpoint prune": (
        *("RUN", "--keep-last", "--keep-every", "--keep-best", "--metric", "--dry-run"),
    ),
    "checkpoint import": (
        *("hf", "deepspeed", "PATH", "--out", "--generator", "--recipe", "--config"),
    ),
    "finetune": (
        *("--model", "--train", "--dev", "--test", "--task", "--text", "--text-b", "--label"),
        *("--head", "--epochs", "--lr", "--layer-decay", "--seeds", "--reinitialize", "--out"),
    ),
    "predict": ("--model", "--input", "--out"),
}
"""Every command and words that its help must hold."""

ALL_HELP = """
import contextlib, io, json, sys
forbidden, commands = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(forbidden))  # None there makes `import NAME` an ImportError
from electra_dist.cli import main
found = {}
for command in commands:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            code = main([*command.split(), "--help"])
        except SystemExit as end:
            code = end.code
    found[command] = (code, out.getvalue())
print(json.dumps(found))
"""


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says, which must be one line; stdout must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("electra-dist: ")
    assert err.count("\n") == 1
    return err


def every_command(parser: argparse.ArgumentParser, name: str = "") -> Iterator[str]:
    yield name
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield from every_command(child, f"{name} {word}".strip())


@pytest.fixture(scope="module")
def help_texts() -> dict[str, tuple[int, str]]:
    """The help of every command, from one process in which nothing heavy can be imported."""
    command = [sys.executable, "-c", ALL_HELP, json.dumps([FORBIDDEN, list(HELP)])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return found


def test_the_namespace_of_a_command_holds_its_own_words_only() -> None:
    """`finetune` makes its config of all of them."""
    words = ["finetune", "--model", "m", "--train", "t", "--dev", "d", "--out", "o"]
    names = set(vars(make_parser().parse_args(words))) - {"handler"}
    assert names <= {field.name for field in fields(FinetuneConfig)}


def test_the_table_above_names_every_command() -> None:
    assert set(every_command(make_parser())) == set(HELP)


@pytest.mark.parametrize("command", HELP)
def test_help_prints_the_words_and_imports_nothing_heavy(
    command: str, help_texts: dict[str, tuple[int, str]]
) -> None:
    code, shown = help_texts[command]
    assert code == 0
    assert shown.startswith(f"usage: electra-dist {command}".rstrip())
    for word in HELP[command]:
        assert word in shown


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "electra_dist", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage: electra-dist" in done.stdout
    assert done.stderr == ""


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """`electra-dist config docs | head -0`, with Python's usual buffering of a pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "electra_dist", "config", "docs"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environ, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "COMMAND"),
        (["corpos"], "'corpos'"),
        (["corpus"], "COMMAND"),
        (["corpus", "bild"], "'bild'"),
        (["corpus", "info"], "CORPUS"),
        (["corpus", "info", "C", "--jsn"], "--jsn"),
        (["corpus", "info", "C", "--data.corpus", "D"], "--data.corpus D"),
        (["corpus", "build", "--input", "x", "--out", "y", "--vocab-size", "big"], "'big'"),
        (["corpus", "build", "--out", "y"], "no source"),
        (
            ["corpus", "build", "--sources", "s", "--input", "x", "--out", "y"],
            "--input and --sources",
        ),
        (
            ["corpus", "build", "--sources", "s", "--field", "x", "--out", "y"],
            "--field and --sources",
        ),
        (["corpus", "build", "--input", "x", "--out", "y", "--dedup", "some"], "'some'"),
        (["corpus", "build", "--input", "x", "--out", "y", "--weight", "-1"], "weight -1"),
        (["corpus", "pack", "C", "--len", "8"], "--len 8"),  # no abbreviations
        (["config", "show", "--bach.micro_batch_size", "8"], "--bach.micro_batch_size"),
        (["config", "show", "--metrics.tensorboard", "false"], "--metrics.tensorboard false"),
        (["pretrain", "--recipe", "tiny", "--otu", "x", "--out", "y"], "--otu"),
        (["pretrain", "--recipe", "tiny"], "--out"),
        (["trace", "--recipe", "tiny", "--steps", "3"], "--steps 3 must be A:B"),
        (["trace", "--recipe", "tiny", "--steps", "4:4"], "--steps 4:4 must be A:B"),
        (["trace", "--recipe", "tiny", "--steps", "0:4"], "data.corpus is not set"),
        (["corpus", "audit", "nowhere"], "nowhere is not a run folder"),
        (["pretrain", "--recipe", "tiny", "--out", "x", "--nproc", "0"], "--nproc 0"),
        (["pretrain", "--recipe", "tiny", "--out", "x", "--nproc", "5"], "has 4 micro-batches"),
        (["checkpoint", "export", "onnx", "C", "--out", "x"], "'onnx'"),
        (["finetune", "--model", "m", "--train", "t"], "--dev"),
    ],
)
def test_unknown_words_are_one_sentence_and_exit_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert says in one_sentence(capsys)


def test_a_mistake_names_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["corpus", "pack", "C", "--longth", "8"])
    assert one_sentence(capsys).endswith("see `electra-dist corpus pack --help`\n")


@pytest.mark.parametrize(
    "launcher",
    [
        {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        {
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        },
    ],
)
def test_of_several_ranks_only_the_first_says_it(
    launcher: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    words = ["pretrain", "missing.toml", "--out", "x"]
    assert main(words) == 2
    assert capsys.readouterr() == ("", "")
    for name, value in launcher.items():
        monkeypatch.setenv(name, value.replace("1", "0") if name.endswith("RANK") else value)
    assert main(words) == 2
    assert "missing.toml" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("typed", "plain", "overrides"),
    [
        ("pretrain --out R", "pretrain --out R", ""),
        ("pretrain --out runs/v1.2 c.toml", "pretrain --out runs/v1.2 c.toml", ""),
        ("pretrain --out=runs/v1.2", "pretrain --out=runs/v1.2", ""),
        ("pretrain --a.b 3 c.toml", "pretrain c.toml", "--a.b 3"),
        ("pretrain --a.b=3 c.toml", "pretrain c.toml", "--a.b=3"),
        ("pretrain --seed 7 --out R", "pretrain --out R", "--seed 7"),
        ("pretrain --seed=7 --out R", "pretrain --out R", "--seed=7"),
        ("pretrain --seed -7 --out R", "pretrain --out R", "--seed -7"),
        ("pretrain --a.b --out R", "pretrain --out R", "--a.b"),
        (
            "pretrain --metrics.no-tensorboard c.toml",
            "pretrain c.toml",
            "--metrics.no-tensorboard",
        ),
        ("pretrain --engine.deterministic c.toml", "pretrain c.toml", "--engine.deterministic"),
        ("pretrain --a.b", "pretrain", "--a.b"),
        # These take every word up to the next option.
        ("trace --data.blend w 3 b 1 --steps 0:1", "trace --steps 0:1", "--data.blend w 3 b 1"),
        ("trace c --data.skips 0 3 5 9", "trace c", "--data.skips 0 3 5 9"),
    ],
)
def test_overrides_are_told_from_the_other_words(typed: str, plain: str, overrides: str) -> None:
    assert split_overrides(typed.split()) == (plain.split(), overrides.split())


VALUES = st.sampled_from(["8", "-1", "1e-3", "true", "a.toml", "x=y", "none"])
PLAIN = st.sampled_from(["c.toml", "--out", "RUN", "--nproc", "2", "--recipe", "tiny"])
ALL_KNOBS = changes.flatten(files.load(None))
KNOBS = st.sampled_from(
    [
        name
        for name, value in ALL_KNOBS.items()
        if name != "recipe" and not isinstance(value, bool | tuple | dict)
    ]
)


@given(
    st.lists(
        st.one_of(
            PLAIN.map(lambda word: ([word], [])),
            st.tuples(KNOBS, VALUES).map(lambda kv: ([], [f"--{kv[0]}", kv[1]])),
            st.tuples(KNOBS, VALUES).map(lambda kv: ([], [f"--{kv[0]}={kv[1]}"])),
        )
    )
)
def test_any_mixture_comes_apart_in_order(parts: list[tuple[list[str], list[str]]]) -> None:
    typed = [word for plain, override in parts for word in plain + override]
    plain = [word for part, _ in parts for word in part]
    overrides = [word for _, part in parts for word in part]
    assert split_overrides(typed) == (plain, overrides)


# ------------------------------------------------------------------ commands without training


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "text.txt"
    path.write_text(text(60), encoding="utf-8")
    return path


@pytest.fixture
def build(source: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, *options: str) -> Path:
        out = tmp_path / name
        words = ["corpus", "build", "--input", str(source), "--out", str(out)]
        assert main([*words, "--vocab-size", "200", "--workers", "1", *options]) == 0
        return out

    return run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with a complete checkpoint of step 20 and one of step 30 whose manifest is cut off."""
    run = tmp_path / "run"
    for step in (20, 30):
        (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    (run / "config.json").write_text(files.to_json(files.load(None)))
    shard = ShardRecord(file="shard_00000.safetensors", bytes=2**20, block_hashes=[])
    whole = manifest_text(
        Manifest(
            format_version=1,
            step=20,
            parameters={},
            shards=[shard],
            state_xxh3_128=xxhash.xxh3_128_hexdigest(b"{}"),
        )
    )
    (run / "checkpoints" / "step_00000020" / "manifest.json").write_text(whole)
    (run / "checkpoints" / "step_00000030" / "manifest.json").write_text(whole[:-40])
    return run


def only_json(capsys: pytest.CaptureFixture[str], *words: str) -> object:
    """The one JSON document that a command prints, and nothing else."""
    capsys.readouterr()
    assert main(list(words)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_json_of_a_corpus(build: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    corpus = build("corpus", "--held-out-share", "0.2")
    info = only_json(capsys, "corpus", "info", str(corpus), "--json")
    assert isinstance(info, dict)
    assert info["splits"]["train"]["documents"] > info["splits"]["held_out"]["documents"] > 0


def test_json_of_a_run(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = only_json(capsys, "status", str(run_folder), "--json")
    assert isinstance(status, dict)
    assert status["state"] == "not started"
    rows = only_json(capsys, "checkpoint", "list", str(run_folder), "--json")
    assert isinstance(rows, list)
    assert [(row["step"], row["bytes"], row["problem"] is None) for row in rows] == [
        (20, 2**20, True),
        (30, None, False),
    ]


def test_the_list_of_checkpoints_says_which_one_is_damaged(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "list", str(run_folder)]) == 0
    good, bad = capsys.readouterr().out.splitlines()
    assert "1.0 MiB" in good
    assert "cannot be read" in bad


def test_the_resolved_config_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = only_json(capsys, "config", "show", "--recipe", "tiny", "--seed", "5")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(shown))
    assert files.read_json(path) == files.load(None, ["--seed", "5"], recipe="tiny")


def test_stop_leaves_a_word_in_the_run_folder(run_folder: Path) -> None:
    assert main(["stop", str(run_folder)]) == 0
    assert (run_folder / "STOP").exists()


@pytest.mark.parametrize("words", [["stop"], ["status"], ["checkpoint", "list"]])
def test_a_folder_that_is_no_run(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, str(tmp_path)]) == 2
    assert "is not a run folder" in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["corpus", "build", "--input", str(source), "--out", str(source / "corpus")]
    assert main(words) == 2
    assert f"{source}/corpus" in one_sentence(capsys)


def test_a_full_disk_is_one_sentence(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("electra_dist.data.store.write_json", full)
    words = ["corpus", "build", "--input", str(source), "--out", str(tmp_path / "corpus")]
    assert main(words) == 2
    assert f"{tmp_path}/corpus.building: No space left on device" in one_sentence(capsys)


def test_a_corpus_can_be_cut_into_smaller_files(build: Callable[..., Path]) -> None:
    assert len(list(build("one").glob("tokens_*"))) == 1
    assert len(list(build("many", "--shard-tokens", "1000").glob("tokens_*"))) > 3


@pytest.mark.parametrize(
    ("options", "word"),
    [([], "ete"), (["--no-strip-accents"], "été"), (["--cased"], "Été")],
)
def test_casing_and_accents(build: Callable[..., Path], options: list[str], word: str) -> None:
    tokenizer = Tokenizer.from_file(str(build("corpus", *options) / "tokenizer.json"))
    assert tokenizer.normalizer.normalize_str("Été") == word


def test_nothing_held_out_is_a_warning(
    build: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = build("corpus", "--held-out-share", "0")
    assert "no document is held out" in capsys.readouterr().err
    assert main(["corpus", "pack", str(corpus), "--length", "32"]) == 0
    assert "no document is held out" in capsys.readouterr().err
    build("other", "--held-out-share", "0.2")
    assert capsys.readouterr().err == ""


def test_pack_has_a_seed_of_its_own(
    build: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = build("corpus", "--held-out-share", "0.2")
    words = ["corpus", "pack", str(corpus), "--length", "32", "--seed", "3"]
    assert main(words) == 0
    assert json.loads((corpus / "pack_32_full" / "manifest.json").read_text())["seed"] == 3
    capsys.readouterr()
    assert main([*words, "--mask-prob", "15"]) == 2
    assert "--mask-prob 15" in one_sentence(capsys)


def test_a_trace_beyond_the_schedule_says_so(
    build: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = build("corpus", "--held-out-share", "0.2")
    assert main(["corpus", "pack", str(corpus), "--length", "32"]) == 0
    words = ["trace", "--recipe", "tiny", "--data.corpus", str(corpus), "--json"]
    words += ["--data.sequence_length", "32", "--schedule.num_steps", "20"]
    words += ["--schedule.warmup_steps", "5", "--steps"]
    capsys.readouterr()
    for steps, warnings in (("19:20", 0), ("19:21", 1)):
        assert main([*words, steps]) == 0
        said = capsys.readouterr()
        assert len(json.loads(said.out)["steps"]) == 1 + warnings
        assert said.err.count("\n") == warnings
        assert ("beyond schedule.num_steps = 20" in said.err) == bool(warnings)


def test_packed_rows_and_their_masks_are_recorded(
    build: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = build("corpus", "--held-out-share", "0.2")
    words = ["corpus", "pack", str(corpus), "--length", "32", "--mode", "packed"]
    assert main([*words, "--workers", "1"]) == 0
    assert "pack_32_packed: " in capsys.readouterr().out
    assert (corpus / "pack_32_packed" / "frozen_0.15.safetensors").is_file()
    assert main(["corpus", "info", str(corpus)]) == 0
    assert "length 32, packed" in capsys.readouterr().out
    assert main(["corpus", "verify", str(corpus)]) == 0


def test_a_vocabulary_is_trained_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(text(60))
    words = ["--input", str(tmp_path / "a.txt"), "--json"]
    out = str(tmp_path / "v.txt")
    train = ["vocab", "train", *words, "--size", "200", "--held-out-share", "0.2", "--out", out]
    assert main(train) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["file"], made["held_out"]) == (out, True)
    assert main(["vocab", "report", *words, "--tokenizer", out]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"]["documents"] == 60 > made["report"]["documents"] > 0
    assert found["report"]["unknown_token_share"] == 0
    assert main(train) == 2
    assert "exists already" in one_sentence(capsys)


def test_a_figure_of_a_corpus(
    build: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = build("corpus")
    capsys.readouterr()
    figure = tmp_path / "corpus.png"
    assert main(["corpus", "info", str(corpus), "--json", "--plot", str(figure)]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["documents"] > 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert main(["corpus", "info", str(corpus), "--plot", str(tmp_path / "corpus.jpg")]) == 2
    assert "must end in .png" in one_sentence(capsys)
