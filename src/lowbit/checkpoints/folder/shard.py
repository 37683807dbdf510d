"""shard - one safetensors file: named tensors read one at a time, or written whole.

Idea      The header (length, JSON, then the data) says where each tensor lies; a tensor is read straight into its own memory.
          The file is never mapped, so resident memory is that of the tensors in use. Nothing is ever unpickled.
          Writing is atomic: a temporary file beside the target, fsync, rename. The same tensors give the same bytes.
Source    https://github.com/huggingface/safetensors, section Format.
Traps     A download cut short keeps its header: the end that the header promises is compared with the file's size at once.
"""

import errno
import functools
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from lowbit.core.errors import CapacityError, CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16,
    "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000
READERS, TOGETHER = 4, 16 << 20
"""Threads that read a large tensor, and bytes that one of them takes at a time: one alone copies a few GB/s from the system's
cache, a GPU takes 50."""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes start .. stop of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Shard:
    """An open safetensors file. Raises CheckpointError when it is missing, no such file, or cut short."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}. Download or copy it again.") from error
        self.size = os.fstat(self._file.fileno()).st_size
        self.header, self.entries = self._read_header()

    def _read_header(self) -> tuple[bytes, dict[str, Entry]]:
        length = int.from_bytes(self._bytes(0, 8), "little") if self.size >= 8 else 0
        if not 2 <= length <= min(LONGEST_HEADER, self.size - 8):
            raise CheckpointError(f"{self.path}: no safetensors header in {self.size:,} bytes. Download or copy it again.")
        header = self._bytes(8, 8 + length)
        try:
            fields: dict[str, Any] = json.loads(header)
            entries = {name: _entry(field, 8 + length) for name, field in fields.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.path}: unreadable safetensors header ({error}). Download or copy it again."
            ) from error
        cut = sorted((e.stop, name) for name, e in entries.items() if e.stop > self.size)
        if cut:
            short = cut[-1][0] - self.size
            raise CheckpointError(f"{self.path} ends {short:,} bytes early, in {cut[0][1]}. Download or copy it again.")
        return header, entries

    def _bytes(self, start: int, stop: int) -> bytes:
        return os.pread(self._file.fileno(), stop - start, start)

    def tensor(self, name: str, device: torch.device | None = None) -> Tensor:
        """One tensor, in memory of its own."""
        if name not in self.entries:
            raise CheckpointError(f"{self.path}: no tensor {name}. The file does not belong to this model or config.json.")
        return self.read(name, self.entries[name], device)

    def read(self, name: str, entry: Entry, device: torch.device | None = None) -> Tensor:
        """What lies where `entry` says, in memory of its own. name: for errors. device: where it goes, default the CPU."""
        gpu = device is not None and device.type == "cuda"
        found = torch.empty(entry.stop - entry.start, dtype=torch.uint8, device=device if gpu else "cpu")
        pieces = [slice(a, min(a + TOGETHER, len(found))) for a in range(0, len(found), TOGETHER)]
        read = functools.partial(self._piece, name, entry, found)
        for piece, buffer in zip(pieces, (_readers().map if len(pieces) > 1 else map)(read, pieces), strict=True):
            if buffer is not None:
                found[piece].copy_(buffer, non_blocking=True)
        found = found.view(entry.dtype).view(entry.shape) if len(found) else found.to(entry.dtype).view(entry.shape)
        return found if device is None else found.to(device)

    def _piece(self, name: str, entry: Entry, found: Tensor, piece: slice) -> Tensor | None:
        """Read one piece of the bytes `found`: into them, or, when they are on a GPU, into pinned memory, which is returned.

        torch keeps that for the next pieces: no page of it is new each time, and it is never as large as a tensor.
        """
        pinned = torch.empty(piece.stop - piece.start, dtype=torch.uint8, pin_memory=True) if found.is_cuda else None
        view, position = _memory(found[piece] if pinned is None else pinned), 0
        while position < len(view):
            read = os.preadv(self._file.fileno(), [view[position:]], entry.start + piece.start + position)
            if read == 0:
                raise CheckpointError(f"{self.path} ends early, in {name}: it was cut while being read. Copy it again.")
            position += read
        return pinned

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS)


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous uint8 tensor, not copied."""
    return memoryview(tensor.numpy())  # type: ignore[arg-type,unused-ignore]


def _entry(field: dict[str, Any], offset: int) -> Entry:
    """One field of a header. Raises ValueError when it contradicts itself."""
    start, stop = field["data_offsets"]
    dtype, shape = DTYPES[field["dtype"]], tuple(field["shape"])
    count = 1
    for size in shape:
        count *= size
    if start < 0 or stop - start != count * dtype.itemsize:
        raise ValueError(f"{list(shape)} of {field['dtype']} in {stop - start} bytes")
    return Entry(dtype, shape, offset + start, offset + stop)


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically: wide dtypes first, then by name. Raises CapacityError when the disk is full."""
    names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        tensor = tensors[name]
        stop = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts = [len(text).to_bytes(8, "little"), text]
    _write(path, parts, [tensors[name] for name in names])


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    _write(path, [text.encode()], [])


def _write(path: Path, parts: list[bytes], tensors: list[Tensor]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            for tensor in tensors:
                flat = tensor.detach().cpu().contiguous().view(-1)
                file.write(_memory(flat.view(torch.uint8)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise CapacityError(f"{path}: the disk is full. Free some space and run again.") from error
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}). Choose another folder.") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
