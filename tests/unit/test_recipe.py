"""Sentences and plans: round trips, the Python twin, who rounds which layer, bytes, and the words of every error."""

from dataclasses import dataclass

import pytest
import torch

from lowbit import formats, methods
from lowbit.core.errors import FormatError, RecipeError, ShapeError
from lowbit.recipe import Recipe, presets
from lowbit.recipe.plan import Plan
from lowbit.testing import recipe as suite

TOYS = {
    "press": '''
"""press - a solver for tests."""
from dataclasses import dataclass
from typing import ClassVar, Literal
from lowbit.methods import Method

@dataclass(frozen=True)
class Press(Method):
    format: str = ""
    damp: float = 0.01
    sweeps: int = 0
    order: Literal["activation", "none"] = "activation"
    search: bool = True
    limit: float | None = None
    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    def solve(self, weight, stats, format): ...
''',
    "smooth": '''
"""smooth - a transform for tests."""
from dataclasses import dataclass
from typing import ClassVar
from lowbit.methods import Count, Method

@dataclass(frozen=True)
class Smooth(Method):
    format: str = ""
    grid: Count = 20
    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    def rewrite(self, block, stats): ...
''',
    "spin": '''
"""spin - a transform without a format, for tests."""
from dataclasses import dataclass
from typing import ClassVar
from lowbit.methods import Method, Share

@dataclass(frozen=True)
class Spin(Method):
    kind: str = "hadamard"
    share: Share = 0.5
    needs: ClassVar[tuple[str, ...]] = ()
    def rewrite(self, block, stats): ...
''',
}


@pytest.fixture(autouse=True)
def toys(tmp_path, monkeypatch):
    """Three methods as an installed plug-in would bring them."""
    for name, source in TOYS.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = methods.shelf._plugins | {name: name for name in TOYS}
    monkeypatch.setitem(methods.shelf.__dict__, "_plugins", plugins)
    monkeypatch.setitem(methods.shelf.__dict__, "_given", {})
    yield
    methods.get.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        "press(int4-g128)",
        "smooth(int4-g128)",
        "smooth + press(int4-g128)",
        "spin + smooth(grid=5) + press(int3-g64-asym, damp=0.05, sweeps=2)",
        "press(int4-g128, order=none, search=false, limit=0.5)",
        "press(int8-row) + press(int4-g128)@mlp + press(int3-g64)@layers.4-7",
        'press(int4-g128)@"*.down_proj"',
        "press(int4-g128)@layers.3",
    ],
)
def test_round_trip(text):
    recipe = Recipe.parse(text)
    assert str(recipe) == text
    assert Recipe.parse(str(recipe)) == recipe


@pytest.mark.parametrize(
    ("loose", "canonical"),
    [
        ("  press( int4-g128 ,damp = 0.01 ) ", "press(int4-g128)"),
        ("smooth+press(format=int4-g128)", "smooth + press(int4-g128)"),
        ("smooth()@mlp +press(damp=1,int4-g128)", "smooth@mlp + press(int4-g128, damp=1.0)"),
        ("press(int4-g128)@*.o_proj", 'press(int4-g128)@"*.o_proj"'),
        ("press(int4-g128)@'*.o_proj'", 'press(int4-g128)@"*.o_proj"'),
        ("press(int4-g128, limit=none)", "press(int4-g128)"),
        ("press(int4-g128, damp=1e-3)", "press(int4-g128, damp=0.001)"),
        ("spin(householder) + press(int4-g128)", "spin(kind=householder) + press(int4-g128)"),
    ],
)
def test_canonical(loose, canonical):
    assert str(Recipe.parse(loose)) == canonical


def test_python_twin():
    press, smooth = methods.get("press"), methods.get("smooth")
    assert Recipe.of(smooth() + press("int4-g128") @ "mlp") == Recipe.parse("smooth + press(int4-g128)@mlp")
    assert Recipe.of(press("int4-g128")) == Recipe.of("press(int4-g128)")
    assert Recipe.of(press("int4-g128", damp=0.1)) != Recipe.of("press(int4-g128)")
    recipe = Recipe.parse("press(int4-g128)")
    assert Recipe.of(recipe) is recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prss(int4-g128)", "Unknown method 'prss'. Nearest: press. 'lowbit list methods' shows all."),
        ("PRESS(int4-g128)", "Unknown method 'PRESS'. Nearest: press. 'lowbit list methods' shows all."),
        ("press", "press: no format to round to. Write press(int4-g128); 'lowbit list formats' shows all."),
        ("smooth", "smooth: nothing here rounds a weight. Add a solver: smooth + gptq(int4-g128)."),
        ("press(int4-g128, dmap=1)", "press(int4-g128, dmap=1): press has no setting 'dmap'. Nearest: damp."),
        ("press(int4-g128, damp=high)", "press(int4-g128, damp=high): 'damp' takes a number, not 'high'. The default is 0.01."),
        (
            "press(int4-g128, sweeps=1.5)",
            "press(int4-g128, sweeps=1.5): 'sweeps' takes a whole number, not '1.5'. The default is 0.",
        ),
        (
            "press(int4-g128, search=1)",
            "press(int4-g128, search=1): 'search' takes true or false, not '1'. The default is true.",
        ),
        (
            "press(int4-g128, order=up)",
            "press(int4-g128, order=up): 'order' takes activation or none, not 'up'. The default is activation.",
        ),
        (
            "press(int4-g128, damp=-1)",
            "press(int4-g128, damp=-1.0): 'damp' takes a number from 0 on, not -1. The default is 0.01.",
        ),
        (
            "press(int4-g128, damp=1e400)",
            "press(int4-g128, damp=inf): 'damp' takes a number from 0 on, not inf. The default is 0.01.",
        ),
        (
            "press(int4-g128, sweeps=-1)",
            "press(int4-g128, sweeps=-1): 'sweeps' takes a whole number from 0 on, not -1. The default is 0.",
        ),
        (
            "smooth(grid=0) + press(int4-g128)",
            "smooth(grid=0): 'grid' takes a whole number from 1 on, not 0. The default is 20.",
        ),
        (
            "spin(share=1.5) + press(int4-g128)",
            "spin(share=1.5): 'share' takes a number from 0 to 1, not 1.5. The default is 0.5.",
        ),
        ("press(int4-g128, int3-g64)", "press(int4-g128, int3-g64): 'format' is given twice. Keep one."),
        (
            "press(int4-g128) + smooth",
            "press(int4-g128) + smooth: smooth would rewrite weights that press has rounded. Put smooth before press.",
        ),
        (
            "press(int8-row) + press(int4-g128)",
            "press(int8-row) + press(int4-g128): press(int8-row) and press(int4-g128) round the same layers. "
            "Keep one, or limit the later: press(int4-g128)@mlp.",
        ),
        (
            "press(int8-row)@mlp + press(int4-g128)@mlp",
            "press(int8-row)@mlp + press(int4-g128)@mlp: press(int8-row)@mlp and press(int4-g128)@mlp round the same layers. "
            "Keep one, or narrow the selector of the later.",
        ),
        (
            "press(int8-row)@mlp + press(int4-g128)",
            "press(int8-row)@mlp + press(int4-g128): press(int8-row)@mlp and press(int4-g128) round the same layers. "
            "Put the narrower step last.",
        ),
        (
            "press(int4-g128)@mpl",
            'press(int4-g128)@mpl: unknown selector \'mpl\'. Nearest: mlp. Also layers.A-B and "glob", as "*.down_proj".',
        ),
        ("press(int4-g128)@layers.7-4", "press(int4-g128)@layers.7-4: layers 7 to 4 run backwards. Write layers.4-7."),
        (
            "press(int4-g128) +",
            "'press(int4-g128) +': no step can be read at its end. Write method(format, key=value)@selector, joined by +.",
        ),
        (
            "smooth + press(int4",
            "'smooth + press(int4': no step can be read at 'press(int4'. "
            "Write method(format, key=value)@selector, joined by +.",
        ),
        ("", "'': no step can be read at its end. Write method(format, key=value)@selector, joined by +."),
    ],
)
def test_errors(text, message):
    with pytest.raises(RecipeError) as error:
        Recipe.parse(text)
    assert str(error.value) == message
    assert error.value.exit_code == 2


def test_unknown_format():
    with pytest.raises(FormatError, match=r"Unknown format 'itn4-g128'. Nearest: int"):
        Recipe.parse("press(itn4-g128)")
    with pytest.raises(FormatError, match=r"Unknown format 'int9-row'. int9: integers have 2 to 8 bits. Use int2 .. int8."):
        Recipe.parse("press(int9-row)")
    with pytest.raises(FormatError, match=r"Unknown word 'grow' in format 'int4-grow'. Nearest: row"):
        Recipe.parse("press(int4-grow)")


def test_a_bare_word_is_a_preset_or_a_method():
    assert str(Recipe.of("balanced")) == presets.load()["balanced"]["sentence"]
    with pytest.raises(RecipeError, match=r"Unknown preset or method 'balancd'. Nearest: balanced"):
        Recipe.of("balancd")


@pytest.mark.parametrize("name", sorted(presets.load()))
def test_presets_are_canonical_sentences(name):
    preset = presets.load()[name]
    assert str(Recipe.parse(preset["sentence"])) == preset["sentence"]
    assert set(preset) == {"sentence", "note"} and preset["note"]


@dataclass(frozen=True)
class Linear:
    name: str
    shape: tuple[int, int]
    role: str
    layer: int


SHAPES = [
    ("self_attn.q_proj", 384, 384),
    ("self_attn.k_proj", 128, 384),
    ("self_attn.o_proj", 384, 384),
    ("mlp.up_proj", 1024, 384),
    ("mlp.down_proj", 384, 1024),
]


def tiny(layers=6):
    """The linears of the bundled model, and its head."""
    found = []
    for i in range(layers):
        for name, out, inputs in SHAPES:
            found.append(Linear(f"model.layers.{i}.{name}", (out, inputs), "attn" if "attn" in name else "mlp", i))
    return [*found, Linear("lm_head", (8192, 384), "head", layers)]


def plan(sentence, layers=6):
    return Plan.make(Recipe.parse(sentence), tiny(layers))


def test_everything_but_the_head_unless_named():
    made = plan("press(int4-g128)")
    assert len(made.targets) == 30 and "lm_head" not in made.targets
    assert made.label() == "int4-g128"
    named = plan("press(int4-g128) + press(int8-row)@head")
    assert str(named.formats["lm_head"]) == "int8-row" and len(named.targets) == 31
    assert "lm_head" in plan('press(int4-g128) + press(int8-row)@"lm_*"').targets


def test_a_narrower_later_selector_overrides():
    made = plan('press(int8-row) + press(int4-g128)@mlp + press(int3-g64)@layers.4-5 + press(int2-g32)@"*.5.mlp.down_proj"')
    found = {name.removeprefix("model.layers."): str(f) for name, f in made.formats.items()}
    assert found["0.self_attn.q_proj"] == "int8-row"
    assert found["0.mlp.up_proj"] == "int4-g128"
    assert found["4.self_attn.q_proj"] == found["5.mlp.up_proj"] == "int3-g64"
    assert found["5.mlp.down_proj"] == "int2-g32"


def test_a_transform_applies_where_it_is_named_and_rtn_follows_its_format():
    made = plan("smooth@mlp + press(int4-g128)")
    assert made.targets["model.layers.0.mlp.up_proj"].transforms == (methods.get("smooth")(),)
    assert made.targets["model.layers.0.self_attn.q_proj"].transforms == ()
    alone = plan("smooth(int4-g128) + press(int8-row)@attn")
    assert methods.name_of(alone.targets["model.layers.0.mlp.up_proj"].solver) == "rtn"
    assert str(alone.formats["model.layers.0.mlp.up_proj"]) == "int4-g128"
    assert methods.name_of(alone.targets["model.layers.0.self_attn.q_proj"].solver) == "press"


def test_a_selector_leaves_the_rest_alone():
    assert {t.role for t in plan("press(int4-g128)@mlp").rows} == {"mlp"}
    assert {t.layer for t in plan("press(int4-g128)@layers.2-3").rows} == {2, 3}


@pytest.mark.parametrize("text", ["int4-g128", "int4-row", "int3-g64-asym", "int8-tensor"])
def test_sizes_are_the_bytes_of_codes_and_parts(text):
    made = plan(f"press({text})", layers=1)
    for target in made.rows:
        weight = torch.randn(target.shape)
        quantized = formats.parse(text).fit(weight, search=False).quantize(weight)
        scale = quantized.parts["scale"]
        expected = target.weights * quantized.format.dtype.bits + scale.numel() * 16
        if "asym" in text:
            expected += scale.numel() * quantized.format.dtype.bits
        assert target.bytes == round(expected / 8)
    assert made.bits_per_weight == pytest.approx(8 * sum(t.bytes for t in made.rows) / made.weights, rel=1e-4)


def test_outlook_grows_with_tokens_and_shrinks_with_speed():
    made = plan("smooth + press(int4-g128)")
    sizes = {"hidden": 384, "block_weights": 1_600_000, "blocks": 6, "outside_bytes": 0}
    small = made.outlook(tokens=2048, flops=1e10, **sizes)
    large = made.outlook(tokens=64 * 2048, flops=1e10, **sizes)
    assert large["peak_memory"] > small["peak_memory"] > 4 * 1_600_000
    assert large["seconds"] > small["seconds"] == pytest.approx(2 * made.outlook(tokens=2048, flops=2e10, **sizes)["seconds"])
    assert len(large["layers"]) == 30
    assert large["layers"][0] == {
        "name": "model.layers.0.self_attn.q_proj",
        "shape": [384, 384],
        "method": "smooth + press",
        "format": "int4-g128",
        "bits": 4.125,
        "bytes": 384 * 384 * 4.125 / 8,
    }
    assert large["bytes"] == sum(row["bytes"] for row in large["layers"])


def test_statistics_that_are_needed():
    assert plan("press(int4-g128)").needs == {"second_moment"}
    assert plan("press(int4-g128)").needs_data and not plan("press(int4-g128)").needs_reference


@pytest.mark.parametrize(
    ("sentence", "kind", "message"),
    [
        (
            "press(int4-g100)",
            ShapeError,
            "press(int4-g100) cannot take model.layers.0.self_attn.q_proj [384, 384]: "
            "group 100 does not divide 384 inputs. Use g128, g64, g32, g16 or row.",
        ),
        (
            "press(int4-g128)@experts",
            RecipeError,
            "press(int4-g128)@experts: this selects none of the model's 31 linears. It has attn, mlp, head, layers.0-5, "
            "and by glob *.q_proj, *.k_proj, *.o_proj, *.up_proj, *.down_proj, lm_head.",
        ),
        (
            "press(int4-g128)@layers.3-9",
            RecipeError,
            "press(int4-g128)@layers.3-9: the model's layers are 0 to 5. Write layers.3-5.",
        ),
        (
            "press(int8-row)@mlp + press(int4-g128)@layers.0-5",
            RecipeError,
            "press(int8-row)@mlp + press(int4-g128)@layers.0-5: "
            "press(int4-g128)@layers.0-5 takes every layer of press(int8-row)@mlp. "
            "Remove press(int8-row)@mlp, or narrow the later selector.",
        ),
    ],
)
def test_plan_errors(sentence, kind, message):
    with pytest.raises(kind) as error:
        plan(sentence)
    assert str(error.value) == message


TABLE = "only formats with a table of values for each row are taken. Use lut4-row, lut3-row or lut2-row."
BOOKS = "only formats with learned codebooks are taken. Use aqlm2x8, aqlm1x16 or aqlm2x16."
VECTORS = "only formats with vectors of several weights of a row are taken. Use e8p2, e8p3 or higgs2x256."
TRIED = "only formats with codes found at once, since matrices are rounded many times, are taken. Use int4-g128 or e8p2."


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("lnq(int4-g128)", TABLE),
        ("squeezellm(int4-g128)", TABLE),
        ("aqlm(e8p2)", BOOKS),
        ("higgs(int4-g128)", "only formats with one of its grids for Gaussian weights are taken. Use higgs2x256 or higgs2x16."),
        ("quip_sharp(int4-g128)", VECTORS),
        ("quip_sharp(trellis2)", VECTORS),
        ("qtip(e8p2)", "only formats with a trellis code are taken. Use trellis2 or trellis_short2."),
        ("billm(int4-g128)", "only formats with signs and two sizes for each group are taken. Use billm-g128."),
        ("pb_llm(int4-g128)", "only formats with room for single weights are taken. Use int4-g128-salient10."),
        ("spqr(e8p2-sparse1)", "only formats with a code for each weight are taken. Use int3-g16-bilevel-sparse0.5."),
        ("lqer(int4-g128-rank8-had)", "only formats with a low-rank part and no other side are taken. Use int4-g128-rank16."),
        ("atom(int4-g128)", "only formats with 8-bit columns are taken. Use int4-g128-byte128."),
        ("onebit(int4-row)", "only formats with a factor for each input are taken. Use int4-row-svid."),
        (
            "hqq(int4-row)",
            "only formats with a zero for each group of a row are taken. Use int4-g64-asym or int4-g64-floatzero.",
        ),
        ("awq(trellis2)", TRIED),
        ("awq + rtn(trellis2)", TRIED),
        ("flatquant + gptq(trellis2)", TRIED),
    ],
)
def test_a_method_takes_the_formats_that_it_is_made_for(step, reason):
    with pytest.raises(RecipeError) as error:
        plan(step)
    assert str(error.value) == f"{step}: {reason}"


def test_a_method_without_a_format_is_told_one_of_its_own():
    for method, example in (("squeezellm", "lut4-row"), ("budget(bits=3.0) + aqlm", "aqlm2x8"), ("press", "int4-g128")):
        with pytest.raises(RecipeError, match=rf"no format to round to. Write \w+\({example}\)"):
            plan(method)
    assert str(Recipe.parse("budget(3) + hqq")) == "budget(bits=3.0) + hqq"


@pytest.mark.parametrize(
    "steps",
    ["smooth + smooth(grid=3)", "spin@mlp + spin@layers.0", "quarot + quarot(seed=1)", "prefixquant + prefixquant(most=2)"],
)
def test_nothing_is_transformed_twice(steps):
    first, second = steps.split(" + ")
    with pytest.raises(RecipeError) as error:
        plan(f"{steps} + rtn(int8-row)")
    told = f"{first} and {second} would change the same layers twice. Keep one of them."
    assert str(error.value) == f"{steps} + rtn(int8-row): {told}"


def test_one_transform_for_each_part_and_others_beside_it():
    assert len(plan("spin@mlp + spin@attn + smooth + rtn(int8-row)").targets["model.layers.0.mlp.up_proj"].transforms) == 2
    with pytest.raises(RecipeError, match=r"kv\(int8\) takes every layer of kv\(int4\)"):
        plan("rtn(int8-row) + kv(int4) + kv(int8)")


@pytest.mark.parametrize("name", [n for n in methods.shelf.names() if n not in TOYS])
def test_sentences_of_every_method(name):
    suite.check_sentence(name)
