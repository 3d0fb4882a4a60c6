"""Datasets of the `datasets` library: a name on the Hub, a folder of data files, a saved dataset.

Read as a stream: nothing is downloaded whole or converted into a cache.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from electra_dist.data.input_files import InputFile
from electra_dist.data.records import Piece, SourceOptions
from electra_dist.data.tables import MAX_BATCH_ROWS, RowCutter, wrong_column
from electra_dist.errors import UserError


def find_datasets(inputs: Sequence[str]) -> list[InputFile]:
    """One entry for each dataset. Raises UserError for none, or a single file."""
    if not inputs:
        raise UserError("--input is empty: give the name of a dataset or the folder of one")
    return [_find(given) for given in inputs]


def hf_pieces(file: InputFile, file_index: int, options: SourceOptions) -> Iterator[Piece]:
    """Consecutive rows of a dataset's text column.

    Raises UserError where the dataset, its split or its text column cannot be read: what cannot be
    read here is not known to be missing, so the build stops and may go on later.
    """
    cutter = RowCutter(file_index)
    row = 0
    try:
        for table in _open(file, options).with_format("arrow").iter(MAX_BATCH_ROWS):
            if wrong := wrong_column(table.schema, options.text_field):
                reason, detail = wrong
                raise UserError(f"--input {file.given}: {reason} ({detail}): set --field")
            for column in table.column(options.text_field).chunks:
                yield from cutter.add(row, column)
                row += len(column)
    except (UserError, OSError):
        raise
    except Exception as error:  # each format of a dataset raises its own
        raise UserError(f"--input {file.given} cannot be read at row {row} ({error})") from error
    yield from cutter.rest()


def _open(file: InputFile, options: SourceOptions) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if _is_saved(Path(file.address)):
            saved = datasets.load_from_disk(file.address)
            return saved[options.hf_split] if isinstance(saved, dict) else saved
        return datasets.load_dataset(
            file.address, options.hf_name, split=options.hf_split, streaming=True
        )
    except KeyError:
        raise UserError(
            f"--input {file.given} has no split {options.hf_split!r}: use one of {', '.join(saved)}"
        ) from None
    except Exception as error:  # the library raises many kinds
        message = str(error).partition("\n")[0]
        raise UserError(
            f"--input {file.given} cannot be opened as a dataset ({message}):"
            " check its name, configuration and split"
        ) from None


def _find(given: str) -> InputFile:
    path = Path(given)
    if path.is_file():
        raise UserError(
            f"--input {given} is a file: give source hf a folder or a name, or use another --source"
        )
    if not path.is_dir():
        return InputFile(given, given, given, num_bytes=None, version="")
    times = [file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()]
    version = f"{len(times)} files, newest {max(times, default=0)}"
    return InputFile(str(path), path.resolve().name, given, num_bytes=None, version=version)


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
