"""lock - pin what is installed into requirements-ci.txt, without lowbit itself and without what only one kind of machine has.

make lock
"""

import re
from importlib import metadata
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements-ci.txt"
ELSEWHERE = re.compile(r"lowbit|pip|setuptools|wheel|triton|nvidia-.*|cuda-.*")
HEAD = """\
# The versions that CI runs, for `pip install --constraint requirements-ci.txt`. Made by `make lock`.
# lowbit itself takes open ranges (pyproject.toml).
"""


def main() -> None:
    found = {d.name.lower().replace("_", "-"): d.version.split("+")[0] for d in metadata.distributions()}
    pins = [f"{name}=={version}" for name, version in sorted(found.items()) if not ELSEWHERE.fullmatch(name)]
    LOCK.write_text(HEAD + "\n".join(pins) + "\n", encoding="utf-8")
    print(f"{LOCK.name}: {len(pins)} versions")


if __name__ == "__main__":
    main()
