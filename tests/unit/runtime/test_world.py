from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.errors import UserError
from electra_dist.runtime.world import World, derived_port, without_launcher_variables

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "1234567",
}
SLURM_JOB = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "n[1-4]",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_TASKS_PER_NODE": "4(x4)",
}
SLURM_STEP = SLURM_JOB | {
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "n[2-4]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
}


def test_an_empty_environment_is_one_process() -> None:
    world = World.from_environment({})
    assert (world.rank, world.world_size, world.local_world_size) == (0, 1, 1)
    assert world.launcher == "single"
    assert world.is_leader


def test_torchrun_variables() -> None:
    world = World.from_environment(TORCHRUN)
    assert (world.rank, world.world_size, world.local_rank, world.local_world_size) == (5, 8, 1, 4)
    assert (world.master_addr, world.master_port) == ("node0", 29400)
    assert (world.launcher, world.restart_count) == ("torchrun", 2)
    assert not world.is_leader


def test_the_deepspeed_launcher_names_the_local_size_otherwise() -> None:
    environ = {k: v for k, v in TORCHRUN.items() if k != "LOCAL_WORLD_SIZE" and "ELASTIC" not in k}
    world = World.from_environment(environ | {"LOCAL_SIZE": "4", "CROSS_RANK": "1"})
    assert (world.local_world_size, world.launcher) == (4, "environment")


def test_what_a_world_exports_describes_the_same_world() -> None:
    world = World.from_environment(TORCHRUN)
    again = World.from_environment(world.as_environment())
    assert again.as_environment() == world.as_environment()


def test_open_mpi_on_one_host_needs_no_master() -> None:
    world = World.from_environment(OPEN_MPI)
    assert (world.rank, world.world_size, world.local_rank) == (3, 4, 3)
    assert (world.master_addr, world.launcher) == ("127.0.0.1", "openmpi")
    assert world.master_port == derived_port("1234567")


def test_open_mpi_on_two_hosts_says_what_to_export() -> None:
    environ = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    with pytest.raises(UserError, match="-x MASTER_ADDR="):
        World.from_environment(environ)
    world = World.from_environment(environ | {"MASTER_ADDR": "h1", "MASTER_PORT": "1234"})
    assert (world.master_addr, world.master_port) == ("h1", 1234)


def test_an_srun_step() -> None:
    world = World.from_environment(SLURM_STEP)
    assert (world.rank, world.world_size, world.local_rank, world.local_world_size) == (4, 5, 0, 1)
    assert (world.master_addr, world.launcher) == ("n2", "slurm")


def test_all_ranks_of_a_step_agree_on_the_port_and_another_job_has_another() -> None:
    first = World.from_environment(SLURM_STEP | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    last = World.from_environment(SLURM_STEP)
    requeued = World.from_environment(SLURM_STEP | {"SLURM_RESTART_COUNT": "1"})
    assert first.master_port == last.master_port != requeued.master_port
    assert (first.local_world_size, last.local_world_size) == (2, 1)


def test_a_batch_shell_is_no_rank() -> None:
    assert World.from_environment(SLURM_JOB).launcher == "single"


def test_an_interactive_step_of_a_job_of_four_tasks_is_one_process() -> None:
    salloc = SLURM_JOB | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
    assert World.from_environment(salloc).world_size == 1


def test_mpirun_inside_a_slurm_job_is_believed_before_slurm() -> None:
    world = World.from_environment(SLURM_STEP | OPEN_MPI)
    assert (world.launcher, world.rank) == ("openmpi", 3)


def test_torchrun_inside_an_srun_step_under_mpi_is_believed_first() -> None:
    assert World.from_environment(SLURM_STEP | OPEN_MPI | TORCHRUN).launcher == "torchrun"


def test_variables_that_a_script_exported_beforehand_make_no_rank() -> None:
    exported = {"WORLD_SIZE": "5", "MASTER_ADDR": "n9", "MASTER_PORT": "2000"}
    world = World.from_environment(SLURM_STEP | exported)
    assert (world.launcher, world.rank) == ("slurm", 4)
    assert (world.master_addr, world.master_port) == ("n9", 2000)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (TORCHRUN | {"RANK": "8"}, "rank 8 of 8"),
        (TORCHRUN | {"RANK": "five"}, "RANK is 'five'"),
        (TORCHRUN | {"RANK": "-1"}, "RANK is '-1'"),
        (TORCHRUN | {"WORLD_SIZE": ""}, "WORLD_SIZE is not set"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "rank 5 of 0"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "local rank 4 of 4"),
        (TORCHRUN | {"LOCAL_RANK": ""}, "LOCAL_RANK is not set"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, "9 ranks on this host"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": ""}, "export LOCAL_WORLD_SIZE"),
        (TORCHRUN | {"MASTER_ADDR": ""}, "export MASTER_ADDR"),
        (TORCHRUN | {"MASTER_PORT": "66000"}, "MASTER_PORT is 66000"),
        (SLURM_STEP | {"SLURM_NODEID": "3"}, "SLURM_NODEID is 3"),
        (SLURM_STEP | {"SLURM_STEP_TASKS_PER_NODE": "2x2"}, "'2x2'"),
        (SLURM_STEP | {"SLURM_STEP_NODELIST": "n[2-"}, "not a Slurm host list"),
        (SLURM_STEP | {"SLURM_PROCID": "5"}, "rank 5 of 5"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "x"}, "OMPI_COMM_WORLD_SIZE is 'x'"),
    ],
)
def test_contradictions_are_the_users_mistake(environ: Mapping[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        World.from_environment(environ)


def test_stripped_children_see_no_launcher_but_keep_the_rest() -> None:
    around = {"PATH": "/bin", "OMP_NUM_THREADS": "3", "SLURM_JOB_ID": "77", "PMI_RANK": "1"}
    stripped = without_launcher_variables(SLURM_STEP | OPEN_MPI | TORCHRUN | around)
    assert World.from_environment(stripped).launcher == "single"
    assert {k: stripped[k] for k in ("PATH", "OMP_NUM_THREADS", "SLURM_JOB_ID")} == {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "3",
        "SLURM_JOB_ID": "77",
    }
    assert not set(stripped) & (set(TORCHRUN) | set(OPEN_MPI) | {"SLURM_STEP_ID", "PMI_RANK"})


@given(st.text())
def test_a_derived_port_lies_below_the_ephemeral_ones(job: str) -> None:
    assert 15_000 <= derived_port(job) < 30_000
