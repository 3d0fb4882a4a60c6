"""Arrays in safetensors files, as memory maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from electra_dist.errors import UserError
from electra_dist.runtime.retry import retrying

Array = npt.NDArray[Any]

_DTYPES: dict[str, npt.DTypeLike] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a safetensors file as read-only views of a memory map.

    Opening and mapping are tried again where the failure may pass. A page that cannot be read later
    kills the process with SIGBUS, which nothing here can catch.

    Raises UserError when the file is not a whole safetensors file.
    """

    def mapped() -> Array:
        return np.memmap(path, np.uint8, mode="r").view(np.ndarray)

    try:
        data = retrying(f"reading {path}", mapped)
        header_end = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:header_end].tobytes())
        header.pop("__metadata__", None)
        arrays: dict[str, Array] = {}
        for name, entry in header.items():
            start, end = (header_end + offset for offset in entry["data_offsets"])
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            arrays[name] = data[start:end].view(dtype).reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged (no whole safetensors file: {error})") from None
    return arrays
