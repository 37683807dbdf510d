"""plant_outliers - a copy of a model with outliers in its activations that computes the same, to measure methods on.

python examples/plant_outliers.py [MODEL] OUT        (MODEL: the bundled one, or any folder that lowbit has a map of)

Then, for example:  lowbit compare OUT "rtn(int8-row) + act(int8-tensor)" "quarot + rtn(int8-row) + act(int8-tensor)"
"""

import shutil
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM

from lowbit.testing.planting import plant

MODEL = Path(__file__).parent.parent / "models" / "lowbit-tiny"


def main() -> None:
    *given, out = sys.argv[1:]
    source = Path(given[0]) if given else MODEL
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    plant(model)
    model.save_pretrained(out)
    for file in source.glob("token*"):
        shutil.copy(file, Path(out) / file.name)


if __name__ == "__main__":
    main()
