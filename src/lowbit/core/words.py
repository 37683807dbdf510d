"""words - numbers as a reader wants them: bytes, seconds, how many of a thing."""


def size(count: float) -> str:
    """Bytes for a reader: 8.1 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:.0f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds for a reader: 8.3 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(count: int, word: str) -> str:
    """1 window, 2 windows."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
