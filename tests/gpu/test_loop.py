"""The decode loop in CUDA graphs: its tokens are those of transformers' generate, with its own step and without it."""

import pytest
import torch

from lowbit.formats import parse
from lowbit.layers.linear import QuantizedLinear
from lowbit.serving import loop
from lowbit.testing._tiny import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2"])
@pytest.mark.parametrize("text", ["", "int4-g32", "nf4-g32"])
@torch.no_grad()
def test_tokens_are_those_of_generate(name: str, text: str) -> None:
    model = tiny(name, sliding_window=None if name in {"llama", "qwen2"} else 64).cuda()
    for path, linear in list(model.model.layers.named_modules()):
        if text and isinstance(linear, torch.nn.Linear):
            quantized = parse(text).fit(linear.weight).quantize(linear.weight)
            model.model.layers.set_submodule(path, QuantizedLinear.from_quantized(quantized, linear.bias).prepare())
    model.generation_config.eos_token_id = None
    ids = torch.randint(3, 256, (1, 30), device="cuda")
    told = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(ids, **told)[0, 30:].tolist()
    assert not loop.refusal(model)
    made = loop.Loop(model)
    assert list(made.tokens(ids, 40)) == wanted
    assert list(made.tokens(ids, 40)) == wanted
    assert len(list(made.tokens(ids, 20, temperature=0.8))) == 20
