"""What an offline W&B run has on disk, read without wandb's own reader (there is none in its public interface)."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

_HEADER_BYTES, _BLOCK_BYTES = 7, 32768


def offline_records(file: Path) -> list[Any]:
    """The records of a `.wandb` file: LevelDB's log format around wandb's messages."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts, records = file.read_bytes(), _HEADER_BYTES, b"", []
    while place + _HEADER_BYTES <= len(data):
        if (room := _BLOCK_BYTES - place % _BLOCK_BYTES) < _HEADER_BYTES:
            place += room
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + _HEADER_BYTES])
        parts += data[place + _HEADER_BYTES : place + _HEADER_BYTES + size]
        place += _HEADER_BYTES + size
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def items(entries: Any) -> dict[str, Any]:
    """The values of a history, config or summary message by key; nested keys joined by dots."""
    return {entry.key or ".".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}
