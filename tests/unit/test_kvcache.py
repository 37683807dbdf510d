"""The packed KV cache: its policies, and that models run through it as through transformers' own."""

import copy
import re
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from lowbit import kvcache
from lowbit.core.errors import RequestError, ShapeError
from lowbit.kernels import pages
from lowbit.kernels.attention import Held
from lowbit.kvcache import Half, Policy, _rope
from lowbit.kvcache._cache import PackedLayer
from lowbit.serving.local import Local
from lowbit.testing._tiny import tiny, tokens
from lowbit.testing.kvcache import check_policy, filled, states

PLAIN = Policy("plain", Half(), Half(), sinks=2, recent=32)
PAD = 0


@pytest.fixture(scope="module")
def model():
    """Full attention in every layer, heads of 32."""
    return tiny("llama", sliding_window=None, head_dim=32, max_position_embeddings=512)


def through(model, policy, ids, *sizes, mask=None):
    """Logits of tokens that pass in pieces through a cache, and the cache."""
    given = kvcache.arguments(policy, model)
    parts, found, end = ids.split([*sizes, ids.shape[1] - sum(sizes)], 1), [], 0
    for part in parts:
        end += part.shape[1]
        seen = {} if mask is None else {"attention_mask": mask[:, :end]}
        with torch.no_grad():
            found.append(model(part, use_cache=True, **given, **seen).logits)
    return torch.cat(found, 1), *given.values()


def written(model, ids, policy=None, **how):
    """What `generate` writes, with or without a policy."""
    given = kvcache.arguments(policy, model) if policy else {}
    how = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None} | how
    with torch.no_grad():
        return model.generate(ids, **{"attention_mask": torch.ones_like(ids)} | how, **given)


@pytest.mark.parametrize("name", kvcache.examples())
def test_policy(name):
    check_policy(name)


def test_floats_are_a_policy_too():
    x = states()
    store = filled(Half(), x, 40, 1, 1)
    assert store.packed > 200 and torch.equal(store.read(), x)


def test_records():
    assert kvcache.parse("int4-g32-k8") == Policy("", Half("int8-g32-floatzero"), Half("int4-g32-floatzero"))
    kivi = kvcache.parse("kivi2")
    assert (kivi.keys.along, kivi.values.along, kivi.sinks, kivi.recent) == ("channel", "token", 0, 128)
    both = kvcache.parse("int4-centred32-rot").keys
    assert (both.centred, both.rotated) == (32, True)


def test_bits_by_hand():
    """A 16-bit scale and a 16-bit zero a group; a 16-bit mean a channel and 64 tokens; 24 bits an outlier."""
    bits = {"int4": 4 + 32 / 128, "kivi2": 3, "fp8": 8 + 16 / 128, "int4-centred": 4.25 + 0.125, "int4-out2": 4.25 + 48 / 128}
    for name, expected in bits.items():
        assert kvcache.parse(name).bits_per_number(128) == pytest.approx(expected), name


def test_policies_on_the_page_have_the_bits_it_says():
    page = (Path(__file__).parents[2] / "docs" / "guide" / "cache.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \|.*\| ([\d., ]+) \|$", page, re.MULTILINE)
    assert len(rows) == 10
    for names, bits in rows:
        for name, told in zip(re.findall(r"`([^`]+)`", names), bits.split(", "), strict=True):
            assert kvcache.parse(name).bits_per_number(128) == float(told), name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kiwi2", "Unknown KV policy 'kiwi2'. Nearest: kivi2"),
        ("int4-rod", "int4-rod: a KV policy of this kind has no word 'rod'. Nearest: rot."),
        ("fp8-g32", "fp8-g32: a KV policy of this kind has no word 'g32'. "),
        ("int9", "int9: 9 bits; this policy takes 2 to 8. Give one of them."),
        ("kivi2-g0", "kivi2-g0: a KV policy of this kind has no word 'g0'. "),
        ("int4-k9", "int4-k9: 9 bits; this policy takes 2 to 8. "),
        ("int8-tensor-rot", "int8-tensor-rot: with a scale for a layer there is no rot. Use int8-tensor, or leave tensor out."),
        ("kivi", "kivi: no bits; this policy takes 2 to 8. Give one of them."),
    ],
)
def test_unknown_policies(text, told):
    with pytest.raises(RequestError, match=re.escape(told)):
        kvcache.parse(text)


def test_heads_that_do_not_fit(model):
    with pytest.raises(ShapeError, match=r"int4-g64: group 64 does not divide the 32 channels of a head\. Use g32, g16, or"):
        through(model, "int4-g64", tokens())


@pytest.mark.parametrize("length", [31, 32, 33, 64, 65, 130])
def test_one_pass_and_token_by_token_agree(model, length):
    """Around the recent window and the pages, with nothing lost."""
    ids = tokens(length=length)
    whole = model(ids).logits
    single, cache = through(model, PLAIN, ids, *[1] * (length - 1))
    assert torch.allclose(single, whole, atol=2e-4)
    assert cache.get_seq_length() == length
    assert torch.allclose(through(model, PLAIN, ids, length // 2)[0], whole, atol=2e-4)


def test_loss_follows_the_bits(model):
    ids = tokens(length=200)
    whole = model(ids).logits
    off = {}
    for name in ("int8", "fp8", "int4", "int4-centred", "kivi4", "kivi2"):
        logits, _ = through(model, f"{name}-s0-r16", ids, *[8] * 24)
        off[name] = float((logits - whole).std() / whole.std())
    assert off["int8"] < 0.02 and off["fp8"] < 0.1
    assert off["int8"] < off["fp8"] < off["int4"] < off["kivi2"] and off["int4-centred"] < off["int4"] < 0.3


def test_keys_far_from_zero():
    """What centring and scales by channel are for; the figures of research: squared error by token .0355, by channel .0039."""
    x = states()
    error = {n: float((filled(kvcache.parse(n).keys, x).read() - x).square().mean()) for n in ("int4", "int4-centred", "kivi4")}
    assert error["int4-centred"] < error["int4"] / 3 and error["kivi4"] < error["int4"] / 3
    alone = x[..., 5:6].expand(-1, -1, -1, 64)  # nothing but a channel at 6: a step is 1/15 of the range, about 4 deviations
    assert float((filled(kvcache.parse("kivi4").keys, alone).read() - alone).square().mean()) < 0.01


def test_rotation_of_odd_heads():
    """12 and 20 are Paley's orders, whose matrices are not symmetric: the way back is another one."""
    for width in (12, 20, 80):
        x = torch.randn(1, 2, 100, width)
        assert float((filled(kvcache.parse("int8-rot").keys, x).read() - x).square().mean()) < 1e-3


@pytest.mark.parametrize("policy", ["int4-s2-r16", "int4-centred-rot-s2-r16", "kivi2-r16"])
def test_attention_never_decodes_the_whole(model, policy, monkeypatch):
    """One new token and several, with and without padding; eager attention, which decodes everything, gives the same."""
    ids = tokens(length=150)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    found = [through(model, policy, ids, 100, 1, 1, 30, mask=m)[0] for m in (None, mask)]
    read, seen = Held.read, []

    def note(held):
        seen.append(held.packed)
        return read(held)

    monkeypatch.setattr(Held, "read", note)
    again = through(model, policy, ids, 100, 1, 1, 30)[0]
    assert torch.equal(again, found[0]) and not any(seen)
    model.set_attn_implementation("eager")
    try:
        decoded = [through(model, policy, ids, 100, 1, 1, 30, mask=m)[0] for m in (None, mask)]
    finally:
        model.set_attn_implementation("sdpa")
    assert any(seen)
    assert torch.allclose(found[0], decoded[0], atol=2e-3)
    assert torch.allclose(found[1][1], decoded[1][1], atol=2e-3)  # what padding itself gives differs, and shares means


ROPES = {
    "llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "gemma3_text": {},
}  # fmt: skip


@pytest.mark.parametrize("name", ROPES)
def test_keys_go_back_before_rope_by_the_models_own_frequencies(name):
    told = {"max_position_embeddings": 512, "num_hidden_layers": 6, "sliding_window": None} | ROPES[name]
    model = tiny(name, **(told | {"sliding_window": 16} if name == "gemma3_text" else told))
    buffers = {n: b for n, b in model.named_buffers() if n.endswith("inv_freq") and "original" not in n}
    own = next(b for n, b in buffers.items() if "sliding" not in n)
    assert torch.allclose(_rope.frequencies(model.config, "full_attention", ""), own, rtol=1e-6)
    ids = tokens(length=130)
    lossless = Policy("plain", Half("int8-row-floatzero", before=True), Half("int8-row-floatzero"), sinks=2, recent=16)
    logits, cache = through(model, lossless, ids, 100, 1, 7)
    whole = model(ids).logits
    assert float((logits - whole).norm() / whole.norm()) < 0.02
    stores = [layer.stores[0] for layer in cache.layers if isinstance(layer, PackedLayer)]
    assert all(store.packed == 96 and store.constants["frequencies"].numel() == own.numel() for store in stores)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    padded, _ = through(model, lossless, ids, 100, 1, 7, mask=mask)
    floats = model(ids, attention_mask=mask).logits
    assert float((padded - floats)[0, 9:].norm() / floats[0, 9:].norm()) < 0.02


def test_keys_before_rope_are_steadier():
    """A channel at 6 before RoPE becomes a circle: by channel over 128 tokens it has its own range before, and none after."""
    torch.manual_seed(0)
    x, frequencies = torch.randn(1, 2, 512, 64) * 0.5, 10000.0 ** -(torch.arange(32) / 32)
    x[..., :8] += 6
    turned = pages.turn(x, frequencies, 0)
    assert torch.allclose(pages.turn(turned, frequencies, 0, back=True), x, atol=1e-4)
    error = {}
    for before in (True, False):
        half = Half("int2-g128-floatzero", "channel", before=before)
        held = pages.encode(half, turned, 0, {"frequencies": frequencies})
        back = pages.decode(half, held, 64, 0, {"frequencies": frequencies})
        error[before] = float((back - turned)[..., :40].square().mean())
    assert error[True] < error[False] / 3


def test_models_without_fixed_rope_are_refused():
    model = tiny("llama", sliding_window=None, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(RequestError, match=r"kivi2-pre: llama has RoPE of type dynamic, which keys cannot be taken back from"):
        kvcache.build("kivi2-pre", model.config)


def test_batches_grow_and_shrink(model):
    """What generate did before it reordered beams, and contrastive search still does."""
    ids = tokens(windows=1, length=90)
    word = next(iter(kvcache.arguments(PLAIN, model)))
    twice, cache = torch.cat([ids, ids]), through(model, PLAIN, ids[:, :80])[1]
    cache.batch_repeat_interleave(2)
    more = model(twice[:, 80:85], **{word: cache}).logits
    cache.batch_select_indices(torch.tensor([1]))
    last = model(ids[:, 85:], **{word: cache}).logits
    whole = model(ids).logits
    assert torch.allclose(more[1:], whole[:, 80:85], atol=2e-4) and torch.allclose(last, whole[:, 85:], atol=2e-4)


def test_rollback_forgets_a_draft(model):
    ids = tokens(length=120)
    draft = tokens(seed=9, length=7)
    for policy in (PLAIN, "int8-r16", "kivi4-r16"):
        straight, _ = through(model, policy, ids, 100)
        _, cache = through(model, policy, torch.cat([ids[:, :100], draft], 1), 100)
        cache.crop(-7)
        assert cache.get_seq_length() == 100
        word = next(iter(kvcache.arguments(policy, model)))
        rest = model(ids[:, 100:], **{word: cache}).logits
        bound = 2e-4 if policy is PLAIN else 0.3
        assert (rest - straight[:, 100:]).abs().max() < bound
    with pytest.raises(RequestError, match=r"crop\(5\): the number of tokens to remove is negative\. Use -5\."):
        cache.crop(5)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_generate_writes_the_same(model, how):
    ids = tokens(length=40)
    expected = written(model, ids, **how)
    assert torch.equal(written(model, ids, PLAIN, **how), expected)


def test_int8_writes_nearly_the_same(model):
    ids = tokens(length=60)
    same = written(model, ids, "int8-r16", max_new_tokens=24) == written(model, ids, max_new_tokens=24)
    assert same.float().mean() > 0.9


def test_left_padding(model):
    ids = tokens(length=50)
    padded = torch.cat([torch.full((2, 9), PAD), ids], 1)
    mask = torch.cat([torch.zeros(2, 9, dtype=torch.long), torch.ones_like(ids)], 1)
    assert torch.equal(written(model, padded, PLAIN, attention_mask=mask)[:, 59:], written(model, ids)[:, 50:])
    same = written(model, padded, "int8-r0", attention_mask=mask, max_new_tokens=24) == written(
        model, padded, attention_mask=mask, max_new_tokens=24
    )
    assert same.float().mean() > 0.9


def test_assisted_decoding(model):
    ids = tokens(windows=1, length=40)
    helper = tiny("llama", seed=3, sliding_window=None, head_dim=32, max_position_embeddings=512)
    found = written(model, ids, PLAIN, assistant_model=helper)
    assert torch.equal(found, written(model, ids))
    assert written(model, ids, "kivi2-r16", assistant_model=helper).shape == found.shape


def test_hybrid_models_keep_their_sliding_layers():
    model = tiny("gemma3_text", num_hidden_layers=6, sliding_window=16, max_position_embeddings=256)
    cache = kvcache.build(PLAIN, model.config)
    packed = [isinstance(layer, PackedLayer) for layer in cache.layers]
    assert packed == [kind == "full_attention" for kind in model.config.layer_types] and True in packed and False in packed
    ids = tokens(length=40)
    assert torch.equal(written(model, ids, PLAIN), written(model, ids))
    sliding = copy.deepcopy(model.config)
    sliding.layer_types = ["sliding_attention"] * 6
    with pytest.raises(
        RequestError, match=r"no layer of gemma3_text that it is for attends to all tokens\. Leave the KV policy out"
    ):
        kvcache.build("int4", sliding)


def test_memory_is_what_the_policy_says(model):
    """Against transformers' own cache of 16-bit floats."""
    ids = tokens(length=500)
    _, cache = through(model, "int4-s0-r0", ids, 480)
    own = DynamicCache(config=model.config)
    model(ids, **{next(iter(kvcache.arguments(PLAIN, model))): own})
    floats = sum(layer.keys.numel() + layer.values.numel() for layer in own.layers)
    packed = 480 / 500 * floats * kvcache.parse("int4").bits_per_number(32) / 8
    assert cache.bytes == packed + 20 / 500 * floats * 4
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.bytes == 0


def test_local(tiny_llama):
    """`lowbit generate --kv`: eight bits write what floats write."""
    plain = "".join(Local(str(tiny_llama)).stream("The wind was up", 60))
    assert "".join(Local(str(tiny_llama), kv="int8").stream("The wind was up", 60)) == plain
    with pytest.raises(RequestError, match="int: no bits; this policy takes 2 to 8"):
        Local(str(tiny_llama), kv="int")
