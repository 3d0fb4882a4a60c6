import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from electra_dist.cli import main
from electra_dist.config import files
from electra_dist.config.cluster import ClusterConfig, find_cluster, read_cluster
from electra_dist.config.recipes import RECIPES
from electra_dist.errors import UserError
from electra_dist.launch.jobs import jobs_of
from electra_dist.launch.slurm import BODY, Job, batch_script, sbatch_words

ROOT = Path(__file__).parents[3]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
GOLDEN = Path(__file__).with_name("golden")
JOB = Job(
    run=Path("/runs/my run"),
    words=("/configs/a.toml", "--optim.learning_rate", "2e-4"),
    num_nodes=2,
    python="/venv/bin/python",
)
SITES = {path.stem: path for path in (ROOT / "slurm" / "clusters").glob("*.toml")}


def header(text: str) -> str:
    """All above the body, which every script has."""
    assert text.endswith("\n" + BODY)
    return text.removesuffix(BODY)


@pytest.mark.parametrize("name", sorted(SITES))
def test_golden_scripts(name: str) -> None:
    """A change of the text is meant, or it is a mistake: the files are written by hand."""
    text = header(batch_script(JOB, read_cluster(SITES[name])))
    assert text == (GOLDEN / f"{name}.sbatch").read_text()


def test_the_script_by_hand_has_the_same_body() -> None:
    assert (ROOT / "slurm" / "pretrain.sbatch").read_text().endswith("\n" + BODY)


@pytest.mark.parametrize("path", sorted((ROOT / "slurm").glob("*.sbatch")), ids=lambda p: p.name)
def test_shellcheck_of_what_lies_there(path: Path) -> None:
    subprocess.run([SHELLCHECK, path], check=True)


@pytest.mark.parametrize("name", sorted(SITES))
def test_shellcheck_of_what_is_written(name: str, tmp_path: Path) -> None:
    script = tmp_path / "submit.sbatch"
    script.write_text(batch_script(JOB, read_cluster(SITES[name])))
    subprocess.run([SHELLCHECK, script], check=True)


# ----------------------------------------------------------- nothing of a user's is a command

PRINT_ALL = r"""
printf '%s\0' "$run" "$PYTHON" "${scratch:-}" "${E:-}" "${NCCL_SOCKET_IFNAME:-}" \
    "${MASTER_ADDR:-}" "${ELECTRA_DIST_RANK_COMMAND:-}" "$@"
"""
EVIL = "a b'c\"d $(touch PWNED) `touch PWNED` $HOME \\ ; touch PWNED # & | > < * ? ~ ! {a,b}"
# What may stand in an environment variable: no NUL, no lone surrogates.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
one_line = words.filter(lambda text: not set(text) & set("\n\r"))


def run_in_bash(folder: Path, script: str) -> list[str]:
    """What the script's words are to bash, instead of what it does with them."""
    script = script.replace(BODY, PRINT_ALL)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        # Modules and scontrol of a site; `set -u` stays as it is.
        env={"PATH": f"{folder}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "SLURM_JOB_NODELIST": "n1"},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


@pytest.fixture(scope="module")
def site_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    for name, text in (("module", ":"), ("scontrol", "echo n1")):
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    return folder


@given(
    overrides=st.lists(words, max_size=4),
    run=one_line.filter(lambda text: not ("'" in text and set(text) & set('"\\'))),
    value=one_line,
    suffix=one_line,
)
@example(
    overrides=[EVIL, "a\nb\n#SBATCH --x", "-n", ""],
    run="a b$(touch PWNED)",
    value=EVIL,
    suffix=EVIL,
)
def test_what_a_user_writes_reaches_bash_as_it_is(
    site_programs: Path, overrides: list[str], run: str, value: str, suffix: str
) -> None:
    job = Job(
        run=Path("/runs") / f"r{run}", words=tuple(overrides), num_nodes=1, python=f"p{value}"
    )
    cluster = ClusterConfig(
        modules=(value,),
        environment={"E": value},
        network_interface=value or None,
        master_addr_suffix=suffix,
        container=("apptainer", "exec", value),
    )
    found = run_in_bash(site_programs, batch_script(job, cluster))
    name, python, _, variable, interface, address, command, *given_words = found
    assert (name, python) == (str(job.run), job.python)
    assert (variable, interface) == (value, value)
    assert address == (f"n1{suffix}" if suffix else "")
    assert given_words == overrides
    assert shlex.split(command) == ["apptainer", "exec", value, "electra-dist"]
    assert not (site_programs / "PWNED").exists()


def test_variables_of_a_scratch_folder_are_the_nodes(site_programs: Path) -> None:
    cluster = ClusterConfig(scratch="/local $(touch PWNED)/$PATH")
    (_, _, scratch, *_) = run_in_bash(site_programs, batch_script(JOB, cluster))
    assert scratch == f"/local $(touch PWNED)/{site_programs}:/usr/bin:/bin/electra_dist"
    assert not (site_programs / "PWNED").exists()


@pytest.mark.parametrize("text", ["a\n#SBATCH --uid=0", "a\rb", "a'b\"c"])
def test_what_an_sbatch_line_can_not_hold_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="SBATCH line"):
        sbatch_words(Job(run=Path(text), words=(), num_nodes=1, python="p"), ClusterConfig())


def test_nodes_that_are_not_fit_are_left_out() -> None:
    job = Job(run=Path("/r"), words=(), num_nodes=1, python="p", left_out=("n1", "n3"))
    assert "--exclude=n1,n3" in sbatch_words(job, ClusterConfig())


# ------------------------------------------------------------------------ the shell and its signals

PYTHON = """#!/bin/bash
# In place of `python -m electra_dist WORD`: says what it was given, and behaves as told.
case $3 in
pretrain)
    trap 'echo got USR1 >> "$OUT"; exit 75' USR1
    trap 'echo got TERM >> "$OUT"; exit 75' TERM
    touch started; for _ in {1..100}; do sleep 0.1; done ;;
requeue)
    echo "$*" >> "$OUT"; touch asked; sleep "$SECONDS_TO_DECIDE"; echo decided >> "$OUT" ;;
esac
"""


@contextmanager
def batch_shell(folder: Path, seconds_to_decide: float) -> Iterator[subprocess.Popen[bytes]]:
    """slurm/pretrain.sbatch with a Python that is none."""
    program = folder / "python"
    program.write_text(PYTHON)
    program.chmod(0o755)
    environ = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": str(program),
        "OUT": str(folder / "out"),
        "SECONDS_TO_DECIDE": str(seconds_to_decide),
    }
    (folder / "run" / "attempts" / "0010").mkdir(parents=True)
    (folder / "run" / "attempts" / "0009").mkdir()
    script = ROOT / "slurm" / "pretrain.sbatch"
    process = subprocess.Popen(["bash", script, "c.toml", "run"], cwd=folder, env=environ)
    try:
        wait_for(folder / "started")
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_signals_go_down_and_are_told_at_the_end(tmp_path: Path) -> None:
    with batch_shell(tmp_path, 0.0) as shell:
        shell.send_signal(signal.SIGUSR1)
        assert shell.wait(60) == 0
    forwarded, asked, _ = (tmp_path / "out").read_text().splitlines()
    assert forwarded == "got USR1"
    words = "requeue run --after-attempt 0010 --code 75 --signals USR1 --max-fruitless 3"
    assert asked == f"-m electra_dist {words}"


def test_usr1_does_not_end_the_decision_and_term_does(tmp_path: Path) -> None:
    """Slurm's warning may come when the run has just finished: the job would be FAILED (seen)."""
    for number, name in ((signal.SIGUSR1, "usr1"), (signal.SIGTERM, "term")):
        folder = tmp_path / name
        folder.mkdir()
        with batch_shell(folder, 0.5) as shell:
            shell.send_signal(signal.SIGTERM)
            wait_for(folder / "asked")
            shell.send_signal(number)
            assert (shell.wait(60) == 0) == (name == "usr1")
        assert ("decided" in (folder / "out").read_text()) == (name == "usr1")


def test_an_array_task_that_is_requeued_leaves_its_finished_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text(f"#!/bin/sh\necho srun >> {tmp_path}/calls\n")
    (tmp_path / "srun").chmod(0o755)
    results = tmp_path / "out" / "sst2" / "seed_5" / "results.json"
    results.parent.mkdir(parents=True)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "1"}
    script = ROOT / "slurm" / "finetune_array.sbatch"
    words = ["bash", str(script), "model", str(tmp_path / "out"), "sst2", "3 5", "data"]
    requeued = {**environ, "SLURM_RESTART_COUNT": "1"}
    for finished, env in ((False, requeued), (True, environ), (True, requeued)):
        results.write_text(json.dumps({"finished": finished}, indent=2))
        subprocess.run(words, env=env, check=True)
    # A first submission leaves it to electra-dist to refuse a finished folder.
    assert (tmp_path / "calls").read_text() == "srun\nsrun\n"


# ------------------------------------------------------------------------------------- the command


def submit(*more: str) -> int:
    return main(["submit", "slurm", "--recipe", "tiny", *more])


def test_dry_run_shows_the_script_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--out", str(run), "--cluster", str(SITES["cpu_site"]), "--nodes", "2"]
    assert submit(*words, "--dry-run", "--optim.learning_rate", "2e-4") == 0
    text = capsys.readouterr().out
    assert "#SBATCH --nodes=2" in text
    assert "set -- --recipe tiny --optim.learning_rate 2e-4" in text
    assert not run.exists()


def test_a_run_that_is_there_needs_no_other_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(files.to_json(RECIPES["base"]()))
    words = ["submit", "slurm", "--out", str(run), "--cluster", str(SITES["cpu_site"])]
    assert main([*words, "--dry-run"]) == 0
    assert str(run) in capsys.readouterr().out


def test_a_chain_is_not_requeued_and_ends_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nwc -l < {tmp_path}/calls\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    words = ["--out", str(tmp_path / "run"), "--cluster", str(SITES["gpu_site"]), "--chain", "3"]
    assert submit(*words) == 0
    assert capsys.readouterr().out.split() == ["1", "2", "3"]
    script = tmp_path / "run" / "submit.sbatch"
    after = "--parsable --dependency=afternotok:{} --kill-on-invalid-dep=yes"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [f"--parsable {script}", *(f"{after.format(n)} {script}" for n in (1, 2))]
    assert "--no-requeue" in script.read_text()
    assert "MAX_FRUITLESS=0" in script.read_text()
    assert jobs_of(tmp_path / "run") == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--nodes", "99"], "198 ranks"),
        (["--nodes", "0"], "--nodes 0 must be"),
        (["--chain", "0"], "--chain 0 must be"),
        (["--time", "abc", "--dry-run"], "--time abc is no time limit; give minutes"),
        (["--cluster", "nowhere"], "--cluster 'nowhere' is not known"),
    ],
)
def test_mistakes(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("--out", "/nowhere/run", "--cluster", str(SITES["cpu_site"]), *more) == 2
    assert message in capsys.readouterr().err


def test_a_config_that_can_not_go_on_with_the_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show", "--recipe", "tiny", "--seed", "1"]) == 0
    (tmp_path / "config.json").write_text(capsys.readouterr().out)
    words = ["--out", str(tmp_path), "--cluster", str(SITES["cpu_site"]), "--dry-run"]
    assert submit(*words, "--seed", "2") == 2
    assert "seed: 1 -> 2" in capsys.readouterr().err
    assert submit(*words, "--seed", "1") == 0


def test_requeue_outside_a_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["requeue", "run", "--after-attempt", "0"]) == 2
    assert "SLURM_JOB_ID" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert main(["requeue", "run", "--after-attempt", "0", "--signals", "USR2"]) == 2
    assert "'USR2' is unknown" in capsys.readouterr().err


# ------------------------------------------------------------------------------- files of clusters


def test_a_name_is_found_and_an_unknown_key_is_not_swallowed(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('acount = "x"\n')
    environ = {"ELECTRA_DIST_CLUSTERS": f"/nowhere:{tmp_path}"}
    path = find_cluster("mine", environ)
    assert path == tmp_path / "mine.toml"
    with pytest.raises(UserError, match="unknown key acount; did you mean account"):
        read_cluster(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus_per_node = -1", "gpus_per_node"),
        ("gpus_per_node = true", "gpus_per_node"),
        ("tasks_per_node = 0", "tasks_per_node"),
        ('tasks = "per_rack"', "tasks"),
        ('partition = "a\\nb"', "partition"),
        ('modules = "cuda"', "modules"),
        ('environment = { "A B" = "c" }', "environment"),
        ("environment = { A = 1 }", "environment"),
        ('time = "1h"', "cluster.time = 1h is no time limit"),
        ("account =", "TOML"),
    ],
)
def test_bad_clusters(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_cluster(path)
