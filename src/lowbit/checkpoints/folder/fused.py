"""fused - experts that a folder holds as one 3-D tensor, seen as one matrix per expert and projection.

In / Out  headers, name -> Entry -> the same, with X.0.gate_proj.weight, X.0.up_proj.weight, X.0.down_proj.weight, X.1... in the
          place of X.gate_up_proj [experts, 2 * inner, hidden] and X.down_proj [experts, hidden, inner].
Idea      Each matrix is a run of bytes inside the fused tensor: its entry says where, nothing is read or copied.
          transformers 5 holds experts so, and saves them so where a class has no older form (`save_original_format=False`);
          engines know experts by the names of published files, and lowbit writes those: all names become the published ones.
Traps     Other arrangements (transposed as Llama 4 and GPT-OSS have them) stay as they are. No sizes fit both.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lowbit import architectures
from lowbit.checkpoints.folder.shard import Entry

UP, DOWN = ".gate_up_proj", ".down_proj"
Place = tuple[str, Entry]
"""The tensor of a file that holds a matrix, and where in that file the matrix lies."""


def apart(entries: Mapping[str, Entry], settings: Callable[[], dict[str, Any]]) -> dict[str, Place]:
    """Every tensor by name, those inside fused ones by names of their own. settings: reads config.json, if it must be."""
    found: dict[str, Place] = {name: (name, entry) for name, entry in entries.items()}
    stems = [name.removesuffix(UP) for name in entries if name.endswith(UP)]
    stems = [stem for stem in stems if _usual(entries[stem + UP].shape, entries.get(stem + DOWN))]
    for stem in stems:
        for fused, parts in ((stem + UP, ("gate_proj", "up_proj")), (stem + DOWN, ("down_proj",))):
            _, entry = found.pop(fused)
            found |= {f"{stem}.{name}.weight": (fused, part) for name, part in _parts(entry, parts)}
    if not stems:
        return found
    kind = settings().get("model_type", "")
    published = architectures.shelf.get(kind).ARCHITECTURE.published if kind in architectures.shelf else ()
    return {_rename(name, published): place for name, place in found.items()}


def _usual(up: tuple[int, ...], down: Entry | None) -> bool:
    """Whether the sizes are [experts, 2 * inner, hidden] and [experts, hidden, inner]."""
    return len(up) == 3 and up[1] % 2 == 0 and down is not None and down.shape == (up[0], up[2], up[1] // 2)


def _parts(entry: Entry, names: tuple[str, ...]) -> Iterator[Place]:
    """The matrices of a fused tensor in their order: every expert's `names`, each as many rows."""
    experts, rows, columns = entry.shape
    size = (entry.stop - entry.start) // (experts * len(names))
    for i in range(experts * len(names)):
        start = entry.start + i * size
        shape = (rows // len(names), columns)
        yield f"{i // len(names)}.{names[i % len(names)]}", Entry(entry.dtype, shape, start, start + size)


def _rename(name: str, published: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in published:
        name = re.sub(pattern, replacement, name)
    return name
