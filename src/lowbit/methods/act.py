"""act - the inputs of quantized linears are rounded too, to scales found while running or taken from a calibration text.

In / Out  a declaration, no verb: linears that a solver rounds and its selector covers get an `activation` in the plan. Solvers
          then see rounded inputs, the stream and the closing check run on them, and layers and files keep it.
Idea      x = s q, s = clip max|x| / half the range, for a token (int8-token), a group (int4-g128, mxfp4, nvfp4) or all of x
          (fp8-tensor), found while running; static: for all of x, or groups, from the calibration text, stored as input_scale.
          nvfp4 finds the scales of its groups under a stored one for all. Where a kernel multiplies the codes of both it does,
          elsewhere the layer rounds x and runs as ever (`lowbit inspect` says which). Rounding takes place inside the sides
          of the weight's format: mxfp4-had32 rounds the turned x.
Source    Dynamic scales: ZeroQuant (2206.01861), section 4.1; as compressed-tensors and vLLM run them. Four or six under the
          maximum of nvfp4's groups (observer mse): 2512.02010.
Defaults  int8-token, dynamic. observer minmax; average, percentile (static ones) and mse. clip 1; for int4 0.9 (QuaRot,
          2404.00456). beyond 0: columns that reach that far in a call stay floats (LLM.int8() takes 6).
Figures   lowbit-tiny, KL in milli-nats on books / docs / wikitext2 (64 windows to calibrate, 32 to measure):
          smoothquant(alpha=0.85) + gptaq(int8-row), int8-token 2.5 / 2.4 / 4.5; rtn(fp8-row), fp8-token 6.7 / 8.3 / 14.2, with
          gptaq 5.5 / 6.7 / 12.7; gptaq(nvfp4) alone 23.4 / 25.2 / 56.4, with nvfp4 73.8 / 91.1 / 155, by mse 67.7 / 83.1 / 143;
          gptaq(mxfp4) alone 42.4 / 46.6 / 105, with mxfp4 164 / 214 / 311, both turned (mxfp4-had32, mse) 116 / 137 / 240.
          gptq(int4-row) with int4-token, clip 0.9: 1129 / 1104 on two texts: rows of 4 bits want a turned basis.
Traps     Engines find group scales by the plain rule: a file with mse for mxfp4 or nvfp4 is lowbit's alone.
          One static scale for all of x meets the first token's outliers: gptaq(int8-row) + act(int8-tensor, static=true) loses
          84 / 100 / 147, fp8-tensor, whose steps grow with x, 8.4 / 11.5 / 16.9. Embeddings and the head take none.
"""

from dataclasses import dataclass
from typing import Literal

from lowbit import formats
from lowbit.kernels.activation import Activation
from lowbit.methods import Method


@dataclass(frozen=True)
class Act(Method):
    """format: of the inputs, as int8-token, fp8-tensor, int4-g128, nvfp4. clip: share of the range that is kept. static: scales
    from the calibration text. observer: what chooses ranges. beyond: columns that reach so far stay floats."""

    format: str = "int8-token"
    clip: float = 1.0
    static: bool = False
    observer: Literal["minmax", "mse", "average", "percentile"] = "minmax"
    beyond: float = 0.0

    def __post_init__(self) -> None:
        self.activation()

    def activation(self) -> Activation:
        """What it declares. Raises FormatError."""
        return Activation(formats.parse(self.format), self.clip, self.static, self.observer, self.beyond)
