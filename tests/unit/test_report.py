"""Tables, pictures, the page and the model card, from plain numbers."""

import copy
import itertools
import json
import re
from html.parser import HTMLParser

import pytest
from matplotlib.text import Text
from rich.console import Console

from lowbit.core.words import duration, size
from lowbit.report import card, diagnosis, page, pictures, table

KL = {"rtn": (70.5, 330.0), "awq": (52.6, 240.0), "gptq": (38.1, 160.0), "awq + gptq": (39.9, 161.0)}
KINDS = {"self_attn.q_proj": 1.0, "self_attn.o_proj": 3.0, "mlp.down_proj": 2.0}


def summary(kl, scale=1.0):
    return {
        "windows": 32,
        "perplexity": 20.0 + kl / 50,
        "perplexity_se": 0.31,
        "kl": kl * scale / 1000,
        "kl_se": kl * scale / 5e4,
        "top1": 1 - kl / 2000,
        "top1_se": 0.002,
        "original_perplexity": 20.0,
    }


def row(name, bits, kl):
    format = f"int{bits}-g128-asym"
    sentence = f"awq + gptq({format})" if "+" in name else f"{name}({format})"
    layers = [
        {
            "name": f"model.layers.{block}.{kind}",
            "format": format,
            "bits": bits + 0.15625,
            "error": kl * factor * (block + 1) / 1e5,
        }
        for block in range(3)
        for kind, factor in KINDS.items()
    ]
    return {
        "recipe": sentence,
        "sentence": sentence,
        "bits_per_weight": bits + 0.15625,
        "bytes": 2_000_000 * bits,
        "seconds": 12.3,
        "peak_memory": 730_000_000,
        "layers": layers,
        "texts": {"books": summary(kl), "docs": summary(kl, 1.2)},
    }


@pytest.fixture
def result():
    """A comparison of four methods at two sizes."""
    original = {
        "recipe": "original",
        "bits_per_weight": 16.0,
        "bytes": 25_200_000,
        "seconds": 0.0,
        "peak_memory": 0,
        "layers": [],
        "texts": {"books": summary(0.0), "docs": summary(0.0)},
    }
    rows = [row(name, bits, kl[4 - bits]) for bits in (4, 3) for name, kl in KL.items()]
    return {
        "original": "models/lowbit-tiny",
        "length": 2048,
        "calibration": "bundled",
        "samples": None,
        "seed": 0,
        "rows": [original, *rows],
    }


def drawn(*renderables, width=100):
    console = Console(width=width, record=True, markup=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(*renderables, sep="\n")
    return console.export_text()


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (999, "999 B"),
        (12_300, "12.3 kB"),
        (8_123_000, "8.12 MB"),
        (1.5e9, "1.5 GB"),
        (2.5e12, "2500 GB"),
    ],
)
def test_size(count, told):
    assert size(count) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.4, "0.4 s"),
        (8.31, "8.3 s"),
        (61, "61 s"),
        (250, "4 min 10 s"),
        (7510, "2 h 5 min"),
    ],
)
def test_duration(seconds, told):
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("value", "error", "digits", "told"),
    [
        (38.07, 0.93, 1, "38.1 ± 0.9"),
        (2.345, 0.012, 1, "2.35 ± 0.01"),
        (0.2, 0.00003, 1, "0.2000 ± 0.0000"),
        (20.0, None, 2, "20.00"),
        (None, None, 1, "–"),
        (20.0, 0.0, 1, "20.0"),
    ],
)
def test_measured(value, error, digits, told):
    assert table.measured(value, error, digits) == told


def test_comparison_on_a_terminal(result):
    told = drawn(*table.comparison(result))
    assert max(map(len, told.splitlines())) <= 100
    assert "books (32 windows)" in told and "docs (32 windows)" in told and "cost" in told
    line = next(x for x in told.splitlines() if "gptq(int4-g128-asym)" in x and "awq" not in x)
    assert line.split() == ["gptq(int4-g128-asym)", "4.156", "20.76", "±", "0.31", "38.1", "±", "0.8", "98.1", "±", "0.2"]
    original = next(x for x in told.splitlines() if "original" in x)
    assert original.split() == ["original", "16.000", "20.00", "±", "0.31", "–", "–"]


def test_comparison_in_markdown(result):
    lines = table.markdown(result).splitlines()
    cells = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    assert len(cells) == 2 + 9 and {len(line) for line in cells} == {3 + 3 * 2 + 2}
    assert lines[-1] == table.NOTE


def test_evaluation_layers_and_facts():
    told = drawn(table.evaluation({"model": "small", "bits_per_weight": 4.125, "texts": {"books": summary(38.1)}}))
    assert "small: 4.125 bits per weight" in told and "38.1 ± 0.8" in told
    alone = {k: v for k, v in summary(38.1).items() if not k.startswith(("kl", "top1"))}
    assert "–" in drawn(table.evaluation({"model": "m", "bits_per_weight": 16.0, "texts": {"books": alone}}))
    rows = [{"name": "a.b", "format": "int4-g128", "bits": 4.125, "bytes": 76_032, "kernel": "cpu.int4", "reasons": {}}]
    told = {"activation": "int8-token", "product": "emulated", "kernel": "reference", "format": "int8-row", "name": "c"}
    assert drawn(table.layers([told])).splitlines()[3].split() == ["c", "int8-row", "int8-token", "reference", "emulated"]
    assert table.facts({"kv": ["int4", "int8"], "prefix": [0], "layers": [told]}) == "kv: int4, int8\nprefix: 0"
    assert drawn(table.layers(rows)).splitlines()[3].split() == ["a.b", "int4-g128", "cpu.int4", "4.125", "76", "kB"]
    plain = {"model": "m", "bits_per_weight": 4.125, "bytes": 1e6, "layers": []}
    assert table.facts(plain) == "model: m\nbits per weight: 4.125\nbytes: 1 MB"
    assert "[a-b]" in drawn(table.rows([{"name": "[a-b]", "about": True}]))


@pytest.mark.parametrize(
    ("sentence", "method"),
    [
        ("gptq(int4-g128)", "gptq"),
        ("awq + gptq(int3-g64-asym)@mlp", "awq + gptq"),
        ("gptq(int4-g128, damp=0.05)", "gptq(damp=0.05)"),
        ("rtn(int8-row) + rtn(int4-g128)@mlp", "rtn"),
        ("smooth(alpha=0.5) + rtn(int8-row)", "smooth(alpha=0.5) + rtn"),
    ],
)
def test_method_of(sentence, method):
    assert table.method_of({"recipe": "x", "sentence": sentence}) == method


def test_front(result):
    rows = result["rows"]
    assert [rows[i]["recipe"] for i in table.front(rows, "books")] == ["gptq(int4-g128-asym)", "gptq(int3-g128-asym)"]


@pytest.mark.parametrize("wanted", [[0.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0], [0.0, 100.0, 101.0, 3.0, 250.0], [3.0]])
def test_spread_keeps_order_and_distance(wanted):
    found = pictures.spread(wanted, 15.0)
    ordered = sorted(range(len(wanted)), key=lambda i: wanted[i])
    steps = [found[b] - found[a] for a, b in itertools.pairwise(ordered)]
    assert all(step >= 15.0 - 1e-9 for step in steps)
    assert sum(found) == pytest.approx(sum(wanted)) or len(set(wanted)) > 1
    if wanted == [3.0]:
        assert found == wanted


def test_pictures(result, tmp_path):
    found = pictures.write(result, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kl.png", "kl.svg", "layers.png", "layers.svg"]
    for text in ("books", "docs", "awq + gptq", "rtn", "original: perplexity 20.00"):
        assert text in found["kl"]
    for text in ("q_proj", "o_proj", "down_proj", "gptq(int3-g128-asym)", "decoder block"):
        assert text in found["layers"]
    for name, svg in found.items():
        assert svg.startswith("<svg") and "var(--ink)" in svg and not any(c in svg for c in pictures.VARIABLES)
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert len(ids) == len(set(ids)) and all(i.startswith(f"{name}-") for i in ids)
        assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)) <= set(ids)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    pictures.write(result, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_labels_do_not_touch(result):
    """Boxes of all texts of the divergence picture are apart."""
    for bits in (4, 3):
        for r in result["rows"][1:]:
            if f"int{bits}" in r["recipe"]:
                r["texts"]["books"]["kl"] = 0.1 / (5 - bits) + 0.0001 * len(r["recipe"])
    with pictures.matplotlib.rc_context(pictures.STYLE):
        figure = pictures.divergence(result)
        figure.draw_without_rendering()
        for panel in figure.axes:
            boxes = [Text.get_window_extent(t) for t in panel.texts]  # without the arrow
            assert len(boxes) == 1 + len(KL)
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
            assert all(box.x0 > panel.get_window_extent().x0 for box in boxes[1:])


def test_pictures_without_errors_or_with_one_row(result, tmp_path):
    result["rows"] = result["rows"][:2]
    result["rows"][1]["layers"] = [{"name": "model.layers.0.mlp.up_proj", "format": "int4-g128", "bits": 4.1}]
    assert list(pictures.write(result, tmp_path)) == ["kl"]


def test_experts_are_drawn_together(result):
    rows = copy.deepcopy(result["rows"][:2])
    rows[1]["layers"] = [
        {"name": f"model.layers.0.mlp.experts.{e}.up_proj", "format": "x", "bits": 4.0, "error": 0.1 * (e + 1)}
        for e in range(3)
    ]
    assert pictures._kinds(rows) == {"expert up_proj": {1: {0: pytest.approx([0.1, 0.2, 0.3])}}}


class Page(HTMLParser):
    """Collects links, text and the embedded data; complains of tags that do not close."""

    VOID = ("meta", "br", "link", "img", "path", "use", "line", "rect", "circle")

    def __init__(self):
        super().__init__()
        self.open, self.links, self.data, self.text = [], [], "", ""

    def handle_starttag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in {"src", "href", "xlink:href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in {"src", "href", "xlink:href"}]

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.data += data
        else:
            self.text += data


def test_page(result, tmp_path):
    result["rows"][1]["layers"][0]["fallback"] = "the matrix was singular </script><b>"
    text = page.render(result, pictures.write(result, tmp_path))
    read = Page()
    read.feed(text)
    read.close()
    assert read.open == []
    assert json.loads(read.data) == json.loads(json.dumps(result))
    assert all(link.startswith("#") for link in read.links)
    assert not re.search(r"url\(['\"]?https?:|@import|<link|<img|<iframe", text)
    assert "prefers-color-scheme: dark" in text and text.count("<svg") == 2
    assert "lowbit quantize models/lowbit-tiny 'gptq(int4-g128-asym)'" in read.text
    assert "the matrix was singular </script><b>" in read.text
    assert "books, 4 bits: gptq(int4-g128-asym) is nearest, 38.1 ± 0.8 mnat" in read.text
    assert "within two standard errors of it: awq + gptq(int4-g128-asym)" in read.text
    assert re.search(r"lowbit compare models/lowbit-tiny 'rtn\(int4-g128-asym\)'", read.text)
    assert "$" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def told(**changes):
    """What a run tells its model card."""
    made = row("gptq", 4, 38.1)
    return {
        "model": "owner/name",
        "sentence": made["sentence"],
        "bits_per_weight": 4.15625,
        "layers": made["layers"],
        "version": "0.1.0",
        "check": {"text": "bundled", **summary(38.1)},
        "calibration": {"text": "bundled", "windows": 64, "length": 2048, "digest": "0123456789abcdef"},
    } | changes


def front(text):
    """The front matter of a card."""
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(text.split("---\n")[1])


def test_card():
    text = card.render(told(license="apache-2.0", seed=3))
    matter = front(text)
    assert matter["base_model"] == "owner/name" and matter["base_model_relation"] == "quantized"
    assert matter["license"] == "apache-2.0" and matter["library_name"] == "transformers"
    assert matter["tags"] == ["lowbit", "int4", "compressed-tensors"]
    assert "\n    gptq(int4-g128-asym)\n" in text and "| 38.1 ± 0.8 |" in text and "`0123456789abcdef`" in text
    assert "lowbit quantize owner/name 'gptq(int4-g128-asym)' --calibration bundled --samples 64 --length 2048 --seed 3" in text
    assert "`2.self_attn.o_proj` 0.0034" in text and "import lowbit" not in text and "## Not measured" in text
    assert text == card.render(told(license="apache-2.0", seed=3))


def test_card_of_a_local_model_in_our_own_scheme():
    text = card.render(told(model="tiny", quant_method="lowbit", calibration={}))
    assert "base_model" not in front(text) and front(text)["tags"][-1] == "lowbit"
    assert "import lowbit" in text and "no calibration text was needed" in text and "--calibration" not in text


def test_card_names_fallbacks_and_does_not_invent_figures():
    reason = "rtn: no token reached this expert"
    layers = [{"name": "model.layers.0.mlp.up_proj", "format": "int4-g128", "bits": 4.125, "fallback": reason}]
    text = card.render(told(layers=layers, check={}))
    assert f"- `model.layers.0.mlp.up_proj`: {reason}" in text
    assert "## Measured" not in text and "nan" not in text.lower()


@pytest.mark.parametrize("width", [200, 80, 60, 45])
def test_a_narrow_terminal_folds_no_name_and_cuts_no_figure(result, width):
    known = {"format": "int4-g128", "method": "gptq", "kernel": "cpu.integers", "bits": 4.125, "bytes": 2e5, "error": 0.0123}
    rows = [{"name": f"model.layers.{i}.self_attn.q_proj", **known} for i in (0, 11)]
    lines = drawn(table.layers(rows), width=width).splitlines()
    assert max(map(len, lines)) <= width and sum("11.self_attn.q_proj" in line and "int4-g128" in line for line in lines) == 1
    assert any("… is model.layers." in line for line in lines) == (width < 200)
    assert any("--json" in line for line in lines) == (width <= 80)
    compared = drawn(*table.comparison(result), width=width)
    assert "38.1 ± 0.8" in compared and "98.1 ± 0.2" in compared
    assert ("20.76 ± 0.31" in compared) == (width >= 80)
    evaluated = drawn(table.evaluation({"model": "m", "bits_per_weight": 4.0, "texts": {"books": summary(38.1)}}), width=width)
    assert "38.1 ± 0.8" in evaluated and ("windows" in evaluated) == (width >= 60)


@pytest.mark.parametrize("width", [200, 80, 60])
def test_a_diagnosis_on_a_narrow_terminal(width):
    layer = {
        "block": 3, "kind": "gate up", "max": 112.3, "rms": 0.561, "ratio": 4.3, "kurtosis": 11829.9,
        "channels": [{"channel": 557, "ratio": 18.0}], "tokens": [{"token": "<|begin_of_text|>", "position": 0, "ratio": 26.0}],
    }  # fmt: skip
    ways = ("weights int4", "weights int8", "inputs int8-tensor", "inputs int8-token", "cache int4", "cache int8")
    losses = [{"what": way, "kind": kind, "kl": 0.08209, "kl_se": 0.02906} for way in ways for kind in ("gate up", "all")]
    advice = {"sentence": "gptq(int4-g128)", "reasons": [], "others": []}
    told = {"model": "m", "windows": 1, "length": 128, "text": "bundled", "perplexity": 7.0, "layers": [layer], "keys": []}
    shown = drawn(*diagnosis.terminal({**told, "losses": losses, "advice": advice}), width=width)
    assert max(map(len, shown.splitlines())) <= width
    for figure in ("gate up", "4.3", "557 (18x)", "<|begin_of_text|>"):
        assert figure in shown, figure
    assert shown.count("82.09 ± 29.06") == len(losses)
    assert ("0.561" in shown) == (width == 200)
