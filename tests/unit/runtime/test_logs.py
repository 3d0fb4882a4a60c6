import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from electra_dist.runtime.logs import setup_logging
from electra_dist.runtime.world import World

LEADER = replace(World.from_environment({}), world_size=4)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root, ours, theirs = (logging.getLogger(n) for n in (None, "electra_dist", "DeepSpeed"))
    levels = [logger.level for logger in (root, ours, theirs)]
    logging.captureWarnings(False)  # a command run by an earlier test may have left it on
    yield
    for handler in [h for h in root.handlers if getattr(h, "is_electra_dist", False)]:
        root.removeHandler(handler)
        handler.close()
    for logger, level in zip((root, ours, theirs), levels, strict=True):
        logger.setLevel(level)
    theirs.filters.clear()
    theirs.handlers.clear()
    theirs.propagate = True
    logging.captureWarnings(False)


def say_everything() -> None:
    ours, theirs = logging.getLogger("electra_dist.train"), logging.getLogger("urllib3")
    ours.debug("our detail")
    ours.info("our news")
    theirs.warning("their chatter")
    theirs.error("their trouble")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("all_gather_into_tensor is deprecated", FutureWarning, stacklevel=1)


def test_the_file_has_everything_and_the_console_what_matters(tmp_path: Path) -> None:
    console = io.StringIO()
    path = setup_logging(LEADER, tmp_path / "attempts" / "0001", console)
    say_everything()
    assert path == tmp_path / "attempts" / "0001" / "rank_00000.log"
    text = path.read_text()
    for said in ("our detail", "our news", "their chatter", "their trouble", "all_gather_into"):
        assert said in text
    assert [line.split(" ", 1)[1] for line in console.getvalue().splitlines()] == [
        "[rank 0] our news",
        "[rank 0] their trouble",
    ]


def test_other_ranks_have_a_file_with_their_rank_and_a_silent_console(tmp_path: Path) -> None:
    console = io.StringIO()
    path = setup_logging(replace(LEADER, rank=3), tmp_path, console)
    say_everything()
    assert path == tmp_path / "rank_00003.log"
    assert " [rank 3] INFO electra_dist.train: our news\n" in path.read_text()
    assert console.getvalue() == ""


def test_setting_up_again_moves_the_log_instead_of_doubling_it(tmp_path: Path) -> None:
    console = io.StringIO()
    assert setup_logging(LEADER, None, console) is None
    path = setup_logging(LEADER, tmp_path, console)
    logging.getLogger("electra_dist").info("once")
    assert path is not None
    assert path.read_text().count("once") == 1
    assert console.getvalue().count("once") == 1


@pytest.mark.parametrize("imported_first", [True, False])
def test_deepspeeds_own_console_handler_is_bypassed(tmp_path: Path, imported_first: bool) -> None:
    chatter, console = io.StringIO(), io.StringIO()

    def as_deepspeed_does_at_its_import() -> None:
        logger = logging.getLogger("DeepSpeed")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(logging.StreamHandler(chatter))

    if imported_first:
        as_deepspeed_does_at_its_import()
    path = setup_logging(LEADER, tmp_path, console)
    if not imported_first:
        as_deepspeed_does_at_its_import()
    logging.getLogger("DeepSpeed").info("rank 0 initialised")
    assert chatter.getvalue() == ""
    assert console.getvalue() == ""
    assert path is not None
    assert path.read_text().count("rank 0 initialised") == 1
