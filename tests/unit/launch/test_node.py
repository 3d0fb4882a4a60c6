import sys
from pathlib import Path

import pytest

from electra_dist.cli import main
from electra_dist.launch.node import Node, run_node


def node(number: int) -> Node:
    return Node(number=number, num_nodes=3, num_ranks=2, master_addr="n1", master_port=17_000)


def test_the_nodes_ranks_make_one_world() -> None:
    environs = [environ for number in range(3) for environ in node(number).environs({"A": "b"})]
    assert [int(environ["RANK"]) for environ in environs] == list(range(6))
    assert [int(environ["LOCAL_RANK"]) for environ in environs] == [0, 1] * 3
    for name, value in {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2", "A": "b"}.items():
        assert {environ[name] for environ in environs} == {value}
    assert {(e["MASTER_ADDR"], e["MASTER_PORT"]) for e in environs} == {("n1", "17000")}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((0, 0), 0),
        ((75, 75), 75),
        ((75, 0), 75),
        ((2, 2), 2),
        ((75, 2), 2),
        ((2, 1), 1),
        ((0, 7), 1),
    ],
)
def test_its_exit_code(
    codes: tuple[int, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("electra_dist.launch.node.GRACE_SECONDS", 0.1)
    program = f"import os, sys; sys.exit({codes}[int(os.environ['LOCAL_RANK'])])"
    assert run_node([sys.executable, "-ISc", program], node(1), {}) == expected


def test_it_needs_a_number_of_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "--recipe", "tiny", "--out", str(tmp_path / "run"), "--launcher", "node"]
    assert main(words) == 2
    assert "--launcher node needs --nproc N" in capsys.readouterr().err
    assert main([*words, "--nproc", "2", "--exclude-bad-nodes"]) == 2
    assert "--exclude-bad-nodes goes with --launcher srun" in capsys.readouterr().err
