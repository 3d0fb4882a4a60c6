"""TensorBoard's points of one attempt: every step one record, written by the caller in one write.

`SummaryWriter` has a thread and a queue. A rank that is stopped in mid-step (a suspended node) and
wakes up after its successor has started would write what was left in them; here nothing is left.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from electra_dist.errors import UserError

Layout = Mapping[str, Mapping[str, list[Any]]]
"""Page, then chart, to TensorBoard's ["Multiline", names]."""


class Board:
    """An event file in `folder`, which appears with the first points."""

    def __init__(self, folder: Path, layout: Layout, *, purge_step: int | None) -> None:
        """Begin a file; nothing is written yet.

        Args:
            folder: of all event files of the run; it need not exist.
            layout: TensorBoard's page of custom scalars.
            purge_step: points of earlier files at this step or later are hidden.

        Raises:
            UserError: the package tensorboard is not installed.
        """
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from torch.utils.tensorboard.summary import custom_scalars
        except ImportError as error:
            raise UserError(
                "metrics.tensorboard is true but the package tensorboard is not installed: "
                "install it or set metrics.tensorboard = false."
            ) from error
        self._folder = folder
        # As tensorboard's own writer names them; nanoseconds, since a process may begin several.
        self._name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        head = [Event(file_version="brain.Event:2")]
        if purge_step is not None:
            head.append(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        head.append(Event(summary=custom_scalars(layout)))
        self._unwritten = b"".join(map(_record, head))

    def points(self, step: int, groups: Mapping[str, Mapping[str, float]]) -> bytes:
        """The record of `step`, a point for every name of every group."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [
            Summary.Value(tag=f"{group}/{name}", simple_value=value)
            for group, values in groups.items()
            for name, value in values.items()
        ]
        return _record(Event(step=step, summary=Summary(value=points)))

    def append(self, record: bytes) -> None:
        """Write a record, after the file's head if it is the first.

        Raises:
            OSError: the disk is full; what could not be written is lost.
        """
        data = self._unwritten + record
        if self._unwritten:
            self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / self._name).open("ab", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(f"{file.name} could not be written whole")
        self._unwritten = b""


def _record(event: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    event.wall_time = time.time()
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
