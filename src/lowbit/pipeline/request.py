"""request - what a user asks of a run, and what the run answers: plain data."""

from dataclasses import asdict, dataclass, field
from typing import Any

from lowbit.core.chain import Chain, Link

VOLATILE = ("out", "bytes", "seconds", "peak_memory", "outlook")
"""What two runs of one command may differ in: it stays out of the written folder."""


@dataclass(frozen=True)
class Request:
    """See lowbit.verbs.quantize."""

    model: str
    recipe: str | Link | Chain = "balanced"
    out: str | None = None
    calibration: str = "bundled"
    samples: int | None = None
    length: int | None = None
    seed: int = 0
    device: str | None = None
    dry_run: bool = False


@dataclass
class Result:
    """What became of it. layers: a row a matrix. finished: a row a finisher. check: held-out divergence of the
    written folder. bytes: of its files.

    kv: how the KV cache is held, "" as floats. outlook: the estimates before any work. seconds, peak_memory (bytes): of the
    process.
    """

    model: str
    sentence: str
    out: str
    bits_per_weight: float
    bytes: int
    seed: int = 0
    quant_method: str = ""
    kv: str | list[str] = ""
    seconds: float = 0.0
    peak_memory: int = 0
    layers: list[dict[str, Any]] = field(default_factory=list)
    finished: list[dict[str, Any]] = field(default_factory=list)
    check: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    outlook: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lasting(self) -> dict[str, Any]:
        """What goes into the folder."""
        return {key: value for key, value in self.to_json().items() if key not in VOLATILE}
