import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.config.slurm_names import expand_hostlist, expand_tasks_per_node, slurm_minutes
from electra_dist.errors import UserError


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("login", ["login"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("gpu[08-10,12],login", ["gpu08", "gpu09", "gpu10", "gpu12", "login"]),
        ("a-1,b[7]", ["a-1", "b7"]),
        ("r[1-2]n[1-2]x", ["r1n1x", "r1n2x", "r2n1x", "r2n2x"]),
        ("n[099-101]", ["n099", "n100", "n101"]),
    ],
)
def test_hostlists_as_slurm_writes_them(text: str, hosts: list[str]) -> None:
    assert expand_hostlist(text) == hosts


@pytest.mark.parametrize("text", ["", "n[1-", "n1]", "n[[1]]", "n[b]", "n[3-1]", "a,,b", "n[]"])
def test_what_is_no_hostlist_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="export MASTER_ADDR"):
        expand_hostlist(text)


@given(
    st.lists(
        st.tuples(st.integers(0, 999), st.integers(0, 30), st.integers(1, 5)),
        min_size=1,
        max_size=5,
    )
)
def test_ranges_expand_to_their_padded_numbers(ranges: list[tuple[int, int, int]]) -> None:
    pieces, expected = [], []
    for first, length, width in ranges:
        pieces.append(f"{first:0{width}d}-{first + length:0{width}d}")
        expected += [f"n{number:0{width}d}" for number in range(first, first + length + 1)]
    assert expand_hostlist(f"n[{','.join(pieces)}]") == expected


def test_tasks_per_node_as_slurm_writes_them() -> None:
    assert expand_tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert expand_tasks_per_node("4") == [4]


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 9)), min_size=1))
def test_tasks_per_node_give_back_every_count(runs: list[tuple[int, int]]) -> None:
    text = ",".join(f"{n}(x{times})" if times > 1 else str(n) for n, times in runs)
    assert expand_tasks_per_node(text) == [n for n, times in runs for _ in range(times)]


@pytest.mark.parametrize("text", ["", "2x3", "2(x)", "(x3)", "2,", "-1"])
def test_what_are_no_task_counts_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="SLURM_TASKS_PER_NODE"):
        expand_tasks_per_node(text)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("90:01", 91),
        ("1:30:00", 90),
        ("24:00:00", 1440),
        ("0:00:20", 1),
        ("2-12", 3600),
        ("2-12:30", 3630),
        ("2-12:30:01", 3631),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_a_time_limit_in_minutes(text: str, minutes: int | None) -> None:
    assert slurm_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "abc", "1h", "\u0663", "0", "0:00:00", "1:2:3:4", "-5", "1-"])
def test_what_is_no_time_limit(text: str) -> None:
    with pytest.raises(UserError, match="is no time limit; give minutes"):
        slurm_minutes(text)
