"""DeepSpeed's formats without DeepSpeed: a round trip, and folders that are not what they seem."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from electra_dist.checkpoint.foreign_deepspeed import load_safely, read_deepspeed
from electra_dist.checkpoint.made import made_state, write_checkpoint
from electra_dist.checkpoint.reshard import differences
from electra_dist.checkpoint.universal import export_universal
from electra_dist.errors import UserError
from electra_dist.runtime.attempt import Attempt
from tests.unit.checkpoint.fake_engine import DictEngine, a_store, damage, saved


@pytest.fixture
def checkpoint(run: Path) -> Path:
    assert saved(a_store(Attempt.claim(run)), DictEngine(3), 40, {"step": 40, "position": 1280})
    return run / "checkpoints/step_00000040"


def test_what_is_exported_comes_back_bit_for_bit(checkpoint: Path, tmp_path: Path) -> None:
    folder = export_universal(checkpoint, tmp_path / "out")
    assert folder == tmp_path / "out/global_step40_universal"
    assert (tmp_path / "out/latest_universal").read_text() == folder.name
    for path in (tmp_path / "out", folder):
        foreign = read_deepspeed(path)
        assert (foreign.step, foreign.zero_stage) == (40, None)
        state = made_state(step=40, origin={"kind": "deepspeed"}, has_moments=True, config=None)
        made = write_checkpoint(
            tmp_path / f"made_{path.name}", foreign.shapes, foreign.pieces(), state
        )
        assert differences(checkpoint, made) == []


def test_files_hold_plain_tensors_only(checkpoint: Path, tmp_path: Path) -> None:
    folder = export_universal(checkpoint, tmp_path / "out")
    files = list(folder.rglob("*.pt"))
    assert len(files) == 3 * 4 + 3
    for path in files:
        assert torch.serialization.get_unsafe_globals_in_checkpoint(str(path)) == []


def test_an_export_is_whole_or_not_there(checkpoint: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_universal(checkpoint, out)
    with pytest.raises(UserError, match="global_step40_universal exists already"):
        export_universal(checkpoint, out)
    damage(run, 40)
    with pytest.raises(UserError, match="damaged; export a checkpoint that verifies"):
        export_universal(checkpoint, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


class Runs:
    """A pickle that calls something as it is opened."""

    def __init__(self, call: Callable[..., Any], *words: Any) -> None:
        self.call, self.words = call, words

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.words


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("call", [os.system, eval, exec, getattr])
def test_nothing_is_called(
    call: Callable[..., Any], old_format: bool, tmp_path: Path, checkpoint: Path
) -> None:
    trace = tmp_path / "was_here"
    words = {os.system: (f"touch {trace}",), getattr: (trace, "touch")}
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    bad = {"param": Runs(call, *words.get(call, (code,)))}
    folder = export_universal(checkpoint, tmp_path / "out")
    path = folder / "zero/scale/fp32.pt"
    torch.save(bad, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(UserError) as caught:
        list(read_deepspeed(folder).pieces())
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["deepspeed.runtime.engine.DeepSpeedEngine", "builtins.eval"])
def test_a_class_that_no_checkpoint_needs_is_named(name: str, tmp_path: Path) -> None:
    """Even one of DeepSpeed's own: the list of what is allowed is short."""
    module, _, attribute = name.rpartition(".")
    # By hand, as DeepSpeed need not be installed: protocol 2's GLOBAL and a call without words.
    pickle = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b")R."
    torch.save({}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "forged.pt", "w") as forged,
    ):
        for entry in plain.namelist():
            data = pickle if entry.endswith("data.pkl") else plain.read(entry)
            forged.writestr(entry, data)
    with pytest.raises(UserError, match=f"forged.pt holds {name}, which no checkpoint"):
        load_safely(tmp_path / "forged.pt")


def test_what_is_damaged_or_missing_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    folder = export_universal(checkpoint, tmp_path / "out")
    with pytest.raises(UserError, match=r"is no checkpoint of DeepSpeed.*no file latest"):
        read_deepspeed(tmp_path / "nowhere")
    path = folder / "zero/tower.weight/exp_avg.pt"
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"exp_avg.pt cannot be read as a file of torch.save"):
            list(read_deepspeed(folder).pieces())
    torch.save({"param": torch.zeros(7)}, path)
    with pytest.raises(UserError, match=r"tower\.weight has 7 of 42 elements of its exp_avg"):
        list(read_deepspeed(folder).pieces())
    path.unlink()
    with pytest.raises(UserError, match=r"exp_avg\.pt does not exist; convert"):
        list(read_deepspeed(folder).pieces())
    torch.save([1], folder / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match="is not laid out as DeepSpeed"):
        read_deepspeed(folder)
    (tmp_path / "out/latest_universal").write_text("../../etc")
    with pytest.raises(UserError, match="names etc, which is no folder in"):
        read_deepspeed(tmp_path / "out")


def test_folders_of_other_kinds_are_refused(tmp_path: Path) -> None:
    stage_0 = tmp_path / "stage_0"
    stage_0.mkdir()
    torch.save({"module": {}}, stage_0 / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match=r"ZeRO 1, 2 and 3 and universal folders are read"):
        read_deepspeed(stage_0)
    for name, words in {
        "zero_pp_rank_0_mp_rank_01_optim_states.pt": "is of a tensor-parallel run",
        "zero_pp_rank_1_mp_rank_00_optim_states.pt": r"lacks the optim_states.pt of rank 0",
    }.items():
        (tmp_path / name).mkdir()
        torch.save({}, tmp_path / name / name)
        with pytest.raises(UserError, match=words):
            read_deepspeed(tmp_path / name)


def test_state_json_of_an_import_has_no_position(checkpoint: Path, tmp_path: Path) -> None:
    foreign = read_deepspeed(export_universal(checkpoint, tmp_path / "out"))
    state = made_state(step=40, origin={"kind": "deepspeed"}, has_moments=True, config=None)
    made = write_checkpoint(tmp_path / "made", foreign.shapes, foreign.pieces(), state, b"{}")
    found = json.loads((made / "state.json").read_text())
    assert found["moments"] == "saved"
    assert "position" not in found
    assert len(found["tokenizer_sha256"]) == 64
    assert (made / "tokenizer.json").read_bytes() == b"{}"
