import json
from pathlib import Path

from electra_dist.launch.step_watch import LINGER_SECONDS, SILENT_SECONDS, RunFolderWatch


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def beat(run: Path, node: int, attempt: int, text: str) -> None:
    path = run / "heartbeat" / f"node_{node:03d}"
    path.parent.mkdir(exist_ok=True)
    # Another file each time, as a rename makes it: its time differs, whatever the clock says.
    path.unlink(missing_ok=True)
    path.write_text(json.dumps({"attempt": attempt, "text": text}))


def begin(run: Path, attempt: int, launch: str) -> Path:
    folder = run / "attempts" / f"{attempt:04d}"
    folder.mkdir(parents=True)
    (folder / "start.json").write_text(json.dumps({"launch": launch}))
    return folder


def test_a_step_may_outlive_its_exit_json_for_a_while_only(tmp_path: Path) -> None:
    clock = Clock()
    watch = RunFolderWatch(tmp_path, "mine", clock)
    assert watch.verdict() is None
    # Another launch's attempt says nothing about this one.
    (begin(tmp_path, 1, "other") / "exit.json").touch()
    folder = begin(tmp_path, 2, "mine")
    assert watch.verdict() is None
    (folder / "exit.json").touch()
    assert watch.verdict() is None
    clock.now += LINGER_SECONDS - 1
    assert watch.verdict() is None
    clock.now += 1
    assert watch.verdict() == "its ranks have ended"


def test_a_step_is_over_when_no_node_beats_any_more(tmp_path: Path) -> None:
    clock = Clock()
    watch = RunFolderWatch(tmp_path, "mine", clock)
    begin(tmp_path, 2, "mine")
    # The start takes as long as it takes, and beats of an earlier attempt count for nothing.
    beat(tmp_path, 0, 1, "")
    for _ in range(5):
        assert watch.verdict() is None
        clock.now += SILENT_SECONDS
    for number in range(5):  # one node of two is enough
        beat(tmp_path, 1, 2, str(number))
        if number == 0:
            beat(tmp_path, 0, 2, "")
        assert watch.verdict() is None
        clock.now += SILENT_SECONDS - 1
    clock.now += 1
    verdict = watch.verdict()
    assert verdict is not None
    assert "no rank" in verdict
