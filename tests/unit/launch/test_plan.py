import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from electra_dist.checkpoint.layout import (
    BLOCK_BYTES,
    KINDS,
    Manifest,
    ShardRecord,
    manifest_text,
    shard_name,
)
from electra_dist.checkpoint.shard import Piece, write_shard
from electra_dist.cli import main
from electra_dist.config.accounting import parameter_shapes
from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import CheckpointConfig, EngineConfig, RunConfig
from electra_dist.config.traffic import sharded_ranges
from electra_dist.errors import UserError
from electra_dist.launch import plan
from electra_dist.launch.plan import Assumptions, Cluster, checkpoint_files, make_plan
from electra_dist.launch.plan_text import size_words

ASSUMED = Assumptions(tflops=100.0, mfu=0.5)


def plan_of(*words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["plan", *words, "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_document_has_every_promised_key(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    document = plan_of("--recipe", recipe, "--gpus-per-node", "2", capsys=capsys)
    for name in ("parameters", "flops", "memory_per_gpu", "traffic_per_step"):
        assert isinstance(document[name], dict), name
    assert set(document["parameters"]) == {"joint", "discriminator"}  # type: ignore[call-overload]
    assert set(document["flops"]) == {"google", "usual"}  # type: ignore[call-overload]
    stages = {f"zero{stage}" for stage in range(4)}
    assert stages <= set(document["memory_per_gpu"])  # type: ignore[call-overload]
    assert stages <= set(document["traffic_per_step"])  # type: ignore[call-overload]
    assert document["checkpoint_bytes"] > 0  # type: ignore[operator]
    assert {"time", "checkpoint_interval", "goodput", "assumed"} <= set(document)


def test_it_needs_neither_torch_nor_numpy() -> None:
    """As on a login node, in a process where importing them fails."""
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'numpy', 'deepspeed', 'transformers']))\n"
        "from electra_dist.cli.main import main\n"
        "sys.exit(main(['plan', '--recipe', 'large', '--nodes', '8', '--gpus-per-node', '8']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "354,655,291 joint" in done.stdout


def test_overrides_count(capsys: pytest.CaptureFixture[str]) -> None:
    plain = plan_of("--recipe", "tiny", capsys=capsys)
    more = plan_of("--recipe", "tiny", "--schedule.num_steps", "600", capsys=capsys)
    assert more["flops"]["usual"] == 2 * plain["flops"]["usual"]  # type: ignore[index]


def test_the_corpus_says_the_vocabulary_where_it_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--recipe", "small", "--data.corpus", str(tmp_path))
    assert plan_of(*words, capsys=capsys)["vocab_size_is_assumed"] is True
    (tmp_path / "manifest.json").write_text('{"vocab_size": 1000}')
    found = plan_of(*words, capsys=capsys)
    assert (found["vocab_size"], found["vocab_size_is_assumed"]) == (1000, False)
    given = plan_of(*words, "--model.vocab_size", "2000", capsys=capsys)
    assert given["vocab_size"] == 2000


@pytest.mark.parametrize(
    ("words", "blamed"),
    [
        (["--nodes", "0"], "--nodes 0"),
        (["--nodes", "100", "--gpus-per-node", "8"], "800 ranks"),
        (["--mfu", "1.5"], "--mfu 1.5"),
        (["--tflops", "-3"], "--tflops -3"),
        (["--mtbf-hours", "nan"], "--mtbf-hours nan"),
        (["--engine.deepspeed_config", "nowhere.json"], "nowhere.json"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], blamed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--recipe", "base", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert blamed in captured.err
    assert captured.err.count("\n") == 1


def test_a_size_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"reduce_bucket_size": "5e8"}}')
    config = replace(RECIPES["tiny"](), engine=EngineConfig(deepspeed_config=str(path)))
    with pytest.raises(UserError, match=r"reduce_bucket_size = '5e8'"):
        make_plan(config, Cluster(), ASSUMED)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "engine",
    [EngineConfig(zero_stage=stage) for stage in (0, 1, 2, 3)] + [EngineConfig(kind="reference")],
)
def test_ranks_save_every_element_once(engine: EngineConfig, world_size: int) -> None:
    config = replace(RECIPES["tiny"](), engine=engine)
    shapes = parameter_shapes(config)
    seen = {name: np.zeros(shape, dtype=int).reshape(-1) for name, shape in shapes.items()}
    for rank in range(world_size):
        for name, first, last in sharded_ranges(config, world_size=world_size, rank=rank):
            assert last > first
            seen[name][first:last] += 1
    assert all((count == 1).all() for count in seen.values())


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_sizes_of_shards_are_those_of_files(stage: int, tmp_path: Path) -> None:
    config = replace(RECIPES["tiny"](), engine=EngineConfig(zero_stage=stage))
    predicted = checkpoint_files(config, world_size=2)
    for rank in range(2):
        pieces = [
            Piece(f"{name}/{kind}", first, np.zeros(last - first, dtype=np.float32))
            for name, first, last in sharded_ranges(config, world_size=2, rank=rank)
            for kind in KINDS
        ]
        path = tmp_path / shard_name(rank)
        write_shard(path, pieces)
        assert path.stat().st_size == predicted[path.name]


@pytest.mark.parametrize("recipe", ["tiny", "small"])  # 7 and 170 blocks of 1 MiB
def test_a_manifest_has_a_hash_for_each_block(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(RECIPES[recipe](), checkpoint=CheckpointConfig(parity=True))
    predicted = checkpoint_files(config, world_size=3)
    written: list[Manifest] = []
    monkeypatch.setattr(plan, "manifest_text", lambda manifest: written.append(manifest) or "")
    checkpoint_files(config, world_size=3)

    def hashed(record: ShardRecord) -> ShardRecord:
        return replace(record, block_hashes=["f" * 16] * -(-record.bytes // BLOCK_BYTES))

    parity = written[0].parity
    assert parity is not None
    shards = [hashed(record) for record in written[0].shards]
    whole = replace(written[0], shards=shards, parity=hashed(parity))
    assert len(manifest_text(whole)) == predicted["manifest.json"]


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1.43e9, "1.43 GB"),
        (4.2e18, "4.2 EB"),
        (7.1e30, "7.1e+12 EB"),
    ],
)
def test_bytes_in_words(num_bytes: float, words: str) -> None:
    assert size_words(num_bytes) == words


def test_an_absurd_size_is_planned_and_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--recipe", "base", "--model.hidden_size", "64000000000"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_parity_file_is_as_large_as_the_largest_shard() -> None:
    run = RECIPES["tiny"]()
    config = replace(run, checkpoint=replace(run.checkpoint, parity=True))
    files = checkpoint_files(config, world_size=3)
    assert files["parity.xor"] == max(files[shard_name(rank)] for rank in range(3))


def times(config: RunConfig, **assumed: float) -> dict[str, dict[str, float]]:
    return make_plan(config, Cluster(), replace(ASSUMED, **assumed))


def test_time_follows_from_the_assumed_speed() -> None:
    config = RECIPES["small"]()
    document = times(config)
    seconds = document["time"]["total_seconds"]
    assert seconds == pytest.approx(document["flops"]["usual"] / 50e12)
    assert times(config, mfu=0.25)["time"]["total_seconds"] == pytest.approx(2 * seconds)


def test_no_other_interval_has_a_better_goodput_than_the_advised_one() -> None:
    run = RECIPES["base"]()
    every = times(run, mtbf_hours=50.0)["checkpoint_interval"]["every_steps"]
    best = times(run, mtbf_hours=50.0)["goodput"]["recommended"]
    for factor in (0.25, 0.5, 2, 4):
        checkpoint = replace(run.checkpoint, every_steps=max(1, round(every * factor)))
        other = times(replace(run, checkpoint=checkpoint), mtbf_hours=50.0)["goodput"]
        assert other["configured"] < best


def test_more_stages_of_zero_hold_less_on_more_ranks() -> None:
    """Weights, gradients and moments of a rank, buckets left out."""
    run = RECIPES["large"]()
    document = make_plan(run, Cluster(nodes=4, gpus_per_node=8), ASSUMED)
    kinds = document["memory_by_kind"]
    state = [
        sum(kinds[f"zero{stage}"][kind] for kind in ("weights", "optimizer", "gradients"))
        for stage in range(4)
    ]
    assert state[0] > state[1] > state[2]
    assert kinds["zero1"]["optimizer"] == kinds["zero3"]["optimizer"]
    assert kinds["zero0"]["optimizer"] == 8 * (
        document["parameters"]["joint"] + 6 * 1024  # the padding of the word table has moments too
    )
