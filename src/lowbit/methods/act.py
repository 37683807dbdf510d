"""act - the inputs of quantized linears are rounded too, to a scale found in each token (or group, or call).

In / Out  a declaration, no verb: linears that a solver rounds and its selector covers get an `activation` in the plan. Solvers
          then see rounded inputs, the stream and the closing check run on them, and layers and files keep it.
Idea      x = s q with s = clip max|x| / half the range, found while running. Where W is int8-row and x int8-token, the layer
          multiplies integers; elsewhere it rounds x and runs as ever (`lowbit inspect` says which).
Source    Dynamic per-token scales: ZeroQuant (2206.01861), section 4.1; as compressed-tensors and vLLM run them.
Defaults  int8-token. clip 1; for int4 0.9 (QuaRot, 2404.00456).
Figures   lowbit-tiny, KL in milli-nats on two texts (4 windows, 8 of 512 tokens to calibrate): gptq(int8-row) alone 0.5 / 0.4,
          with int8-token 5.0 / 5.0 and smoothquant(0.85) before it 3.4 / 3.0; rtn(fp8-row) with fp8-token 10.6 / 8.1;
          gptq(int4-row) with int4-token 1223 / 1190, with clip 0.9 1129 / 1104.
Traps     A side of the weight's format that turns x (had) comes after the rounding. Embeddings and the head take none.
"""

from dataclasses import dataclass

from lowbit import formats
from lowbit.kernels.activation import Activation
from lowbit.methods import Method


@dataclass(frozen=True)
class Act(Method):
    """format: of the inputs, as int8-token, fp8-tensor or int4-g128. clip: share of max|x| that the range covers."""

    format: str = "int8-token"
    clip: float = 1.0

    def __post_init__(self) -> None:
        self.activation()

    def activation(self) -> Activation:
        """What it declares. Raises FormatError."""
        return Activation(formats.parse(self.format), self.clip)
