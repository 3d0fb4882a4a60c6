"""The doctor on this very machine, and on machines that lack something."""

import os
import shutil
import socket
import sys
import threading
from pathlib import Path

import pytest

from electra_dist.launch import doctor
from electra_dist.launch.doctor import CHECKS, Finding, Patient, examine, verdict


def patient(shared: Path | None = None, **environ: str) -> Patient:
    everything = {**os.environ, **environ}
    return Patient(
        environ=everything, rank_environ=everything, shared=shared, num_ranks=2, seconds=60.0
    )


def finding(who: Patient, name: str, monkeypatch: pytest.MonkeyPatch) -> Finding:
    monkeypatch.setattr(doctor, "CHECKS", {name: CHECKS[name]})
    found = list(examine(who))
    assert len(found) == 1
    return found[0]


def test_this_machine_is_fit(tmp_path: Path) -> None:
    findings = list(examine(patient(tmp_path / "not there yet")))
    assert [one for one in findings if not one.is_good] == []
    assert {one.name for one in findings} == {*CHECKS} - {"visibility"}
    assert verdict(findings) == f"OK node {socket.gethostname()}"
    assert list((tmp_path / "not there yet").iterdir()) == []


def test_a_port_in_use_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = finding(patient(MASTER_PORT=str(port)), "port", monkeypatch)
    assert not found.is_good
    assert str(port) in found.words
    assert "set MASTER_PORT" in found.words


@pytest.mark.parametrize("port", ["", "x", "-1", "65536", "222222222222"])
def test_what_is_no_port(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = finding(patient(MASTER_PORT=port), "port", monkeypatch)
    assert not found.is_good
    assert "from 1 to 65535" in found.words


def test_a_broken_torch_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: no such file')")
    broken = patient(PYTHONPATH=str(tmp_path))
    for name in ("devices", "all-reduce"):
        found = finding(broken, name, monkeypatch)
        assert not found.is_good
        assert "libcudart.so.13" in found.words


def test_a_driver_that_hangs_has_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    who = Patient(
        environ=os.environ, rank_environ=os.environ, shared=None, num_ranks=1, seconds=1.0
    )
    found = finding(who, "devices", monkeypatch)
    assert not found.is_good
    assert "nvidia-smi hangs" in found.words


def test_gpus_are_counted_where_nothing_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(
        "class cuda:\n    device_count = lambda: 4\nclass version:\n    cuda = '13.0'\n"
    )
    monkeypatch.setattr(shutil, "which", lambda _: None)
    found = finding(patient(PYTHONPATH=str(tmp_path)), "devices", monkeypatch)
    assert found.is_good
    assert found.words == "4 GPUs: no nvidia-smi to name them, CUDA 13.0"


def test_docker_s_own_shared_memory_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/dev/shm")._replace(free=64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = finding(patient(), "shm", monkeypatch)
    assert not found.is_good
    assert "/dev/shm has 64 MB free, needs 128" in found.words


def test_a_clock_that_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = doctor.time.time
    monkeypatch.setattr(doctor.time, "time", lambda: clock() + 3600)
    found = finding(patient(tmp_path), "clock", monkeypatch)
    assert not found.is_good
    assert "3600 s off" in found.words


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 60)
    found = finding(patient(tmp_path), "shared folder", monkeypatch)
    assert not found.is_good
    assert "make room" in found.words


def test_a_folder_that_is_not_shared_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2"}
    who = Patient(environ=step, rank_environ=step, shared=tmp_path, num_ranks=1, seconds=0.5)
    found = finding(who, "visibility", monkeypatch)
    assert not found.is_good
    assert "1 of 2 nodes" in found.words
    other = threading.Timer(0.2, (tmp_path / "doctor" / "7.0.0" / "n2").touch)
    other.start()
    found = finding(who, "visibility", monkeypatch)
    other.join()
    assert found.is_good


def test_an_unforeseen_error_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def falls(_: Patient) -> str:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(doctor, "CHECKS", {"odd": falls})
    found = list(examine(patient()))
    assert [(one.is_good, one.words) for one in found] == [(False, "ZeroDivisionError: oh")]
    assert verdict(found).startswith(f"BAD node {socket.gethostname()}: odd")
