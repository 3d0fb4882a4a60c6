"""Checkpoints of real DeepSpeed engines, imported and exported bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from electra_dist.checkpoint.reshard import differences
from electra_dist.cli import main
from tests.distributed.foreign_workers import VARIANTS
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """deepspeed/VARIANT and ours/VARIANT of one state each; universal/ was loaded by DeepSpeed."""
    folder = tmp_path_factory.mktemp("foreign")
    run_ranks(
        "tests.distributed.foreign_workers:save_and_load", 2, folder / "logs", folder=str(folder)
    )
    return folder


def ours(folders: Path, variant: str) -> Path:
    return folders / "ours" / variant / "checkpoints/step_00000002"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_native_folder_is_what_our_own_checkpoint_says(
    variant: str, folders: Path, tmp_path: Path
) -> None:
    words = ["checkpoint", "import", "deepspeed", str(folders / "deepspeed" / variant)]
    assert main([*words, "--out", str(tmp_path / "made")]) == 0
    assert differences(ours(folders, variant), tmp_path / "made") == []
    state = json.loads((tmp_path / "made/state.json").read_text())
    assert (state["step"], state["moments"]) == (2, "saved")
    stage = 2 if variant == "bf16" else 3 if variant == "sub_groups" else int(variant[-1])
    assert (state["origin"]["zero_stage"], state["origin"]["num_ranks"]) == (stage, 2)


@pytest.mark.parametrize("variant", ["stage_2", "stage_3"])
def test_what_deepspeed_s_converter_made_of_it_too(
    variant: str, folders: Path, tmp_path: Path
) -> None:
    native = folders / "deepspeed" / variant
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(native / "global_step2"), "--inject_missing_state"]
    command += ["--output_folder", str(tmp_path / "global_step2_universal")]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "RANK": ""})
    words = ["checkpoint", "import", "deepspeed", str(tmp_path)]
    assert main([*words, "--out", str(tmp_path / "made")]) == 0
    assert differences(ours(folders, variant), tmp_path / "made") == []


def test_our_export_was_loaded_by_deepspeed_and_comes_back(folders: Path, tmp_path: Path) -> None:
    words = ["checkpoint", "import", "deepspeed", str(folders / "universal")]
    assert main([*words, "--out", str(tmp_path / "made")]) == 0
    assert differences(ours(folders, "stage_1"), tmp_path / "made") == []


def test_a_rank_s_file_that_is_not_there_is_named(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for variant, words in (("stage_2", "was written by 2 ranks"), ("stage_3", "by 2 ranks")):
        copy = tmp_path / variant
        copy.mkdir()
        for path in (folders / "deepspeed" / variant / "global_step2").iterdir():
            if "_rank_1_" not in path.name:
                (copy / path.name).symlink_to(path)
        out = str(tmp_path / "made")
        assert main(["checkpoint", "import", "deepspeed", str(copy), "--out", out]) == 2
        assert words in capsys.readouterr().err


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize(
    "file", ["zero_pp_rank_1_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"]
)
def test_a_pickle_that_would_run_code_is_refused_in_one_sentence(
    file: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folders / "deepspeed/stage_2/global_step2").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / file).unlink()
    trace = Malicious(tmp_path / "was_here")
    torch.save({"optimizer_state_dict": trace, "param_shapes": trace}, tmp_path / file)
    out = str(tmp_path / "made")
    assert main(["checkpoint", "import", "deepspeed", str(tmp_path), "--out", out]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{file} holds posix.system" in error
    assert not (tmp_path / "was_here").exists()
    assert not Path(out).exists()
