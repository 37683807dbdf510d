"""Trellis codes: published values of states, paths of the encoder, bytes of exllamav3, order of a tile, rate and distortion."""

import pytest
import torch
from torch import Tensor

from lowbit import dtypes
from lowbit.core.errors import FormatError, ShapeError
from lowbit.dtypes import _trellis, _viterbi, hyb, mcg, one_mad, three_inst, trellis, trellis_int
from lowbit.dtypes._trellis import Trellis

STATES = torch.tensor([0, 1, 2, 3, 255, 256, 4095, 12345, 32767, 32768, 65534, 65535])
VALUES = {
    one_mad.rule: "-1.25169 -.838969 -.42625 -.0135318 .46008 -.8525 1.27198 .0202976 1.10284 1.51556 0 .412718",
    three_inst.rule: ".768066 -.919434 .931641 .294434 1.2041 1.06152 .95752 1.08691 -.823242 -.498047 2.51953 -.158203",
    mcg.rule: "1.84375 .134521 -.759277 .839844 -1.28711 -.867188 -2.23047 -.406738 2.72266 -.635254 -1.1582 .850098",
    trellis.mul1: "-3.45312 .641113 -.448486 .194458 .837402 -.245483 .546387 -1.40918 1.94727 -.868164 .437988 -.651367",
    trellis_int.rule: "-126 5 10 -49 -11 -6 13 -64 -61 -57 -60 -55",
}
PAIRS = ((-510, -510), (95, 133), (-66, 10), (29, -113), (124, 53), (-36, -70), (81, 13), (-208, 64))
TABLE_ROWS = {0: 0, 1: 0, 2: 0, 3: 0, 7: 0, 8: 1, 100: 157, 255: 508, 256: 4, 1000: 280, 4095: 448, 12345: 115, 32767: 0}
TABLE_ROWS[40000] = 177
NEGATED = {255, 4095, 12345, 32767, 40000}
WAVE = 1.5 * torch.sin(1.7 * torch.arange(16) + 0.3)
FOUR = "7a33 a33c 33c2 3c23 c23d 23dc 3dc8 dc83 c838 8387 3872 872d 72d6 2d67 d67a 67a3"
THREE = "177f bbfd dfea ff51 fa88 d442 a210 1081 8408 2041 020c 1062 8311 188b c45d 22ef"
TWO = "aa02 a020 0208 2084 0842 842a 42aa 2aa0"
PATHS = {
    "mul1": (Trellis("t4", 4, trellis.mul1), 0.006002, FOUR),
    "mcg": (Trellis("t3", 3, mcg.rule), 0.042647, THREE),
    "mul2": (Trellis("t2", 4, trellis.mul2, 2), 0.141883, TWO),
}
DISTORTION = (  # name, size of the data over that of the code, mean squared error on N(0, 1)
    ("trellis2", 1.0, 0.0680),
    ("trellis_pair2", 0.97, 0.0695),
    ("trellis2.5", 0.97, 0.0352),
    ("trellis3.5", 0.92, 0.00934),
    ("trellis4", 0.9, 0.00442),
    ("hyb3", 0.95, 0.0189),
    ("trellis_short2", 1.0, 0.0723),
    ("trellis_short4", 0.9, 0.00502),
)


def path(element: Trellis, values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [T] and states [T] for values [T V] on a ring of their own."""
    codes = _viterbi.search(values.view(1, -1, element.width), element._code(values.device))
    return codes[0], element.states(codes)[0]


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rule", VALUES, ids=lambda rule: rule.__module__.rpartition(".")[2])
def test_states_have_the_published_values(rule) -> None:
    expected = torch.tensor([float(v) for v in VALUES[rule].split()], dtype=torch.float64)
    torch.testing.assert_close(rule(STATES)[:, 0].double(), expected, rtol=4e-6, atol=1e-7)


def test_sizes_of_the_codes() -> None:
    sizes = {
        "one_mad2": 1.0,
        "three_inst2": 1.24371,
        "mcg2": 1.2441,
        "trellis2": 1.0003,
        "trellis_int2": 36.95,
        "trellis2.5": 1.0,
    }
    for name, size in sizes.items():
        assert dtypes.get(name).rms == pytest.approx(size, rel=3e-4)
    assert dtypes.get("hyb2").rms == pytest.approx(hyb.SIZE, rel=0.01)


def test_two_values_of_a_state_are_two_sums_of_bytes() -> None:
    sums = torch.tensor(PAIRS, dtype=torch.float64)
    torch.testing.assert_close(trellis.mul2(STATES[:8]).double(), sums / 147.8005, rtol=2e-3, atol=3e-3)


def test_half_precision_sum_is_not_the_single_one() -> None:
    """27 707 states of 3INST come out otherwise in single precision: the file adds in half."""
    states = torch.arange(65536)
    pair = three_inst.halves((three_inst.product(states, 89226354, 64248484) & 0x8FFF8FFF) ^ 0x3B603B60).float()
    assert (pair.sum(1) != three_inst.rule(states)[:, 0].float()).sum() == 27707


def test_table_code_takes_the_published_rows() -> None:
    rows, negated = hyb.pair_number(torch.tensor(list(TABLE_ROWS)))
    assert dict(zip(TABLE_ROWS, rows.tolist(), strict=True)) == TABLE_ROWS
    assert {s for s, n in zip(TABLE_ROWS, negated.tolist(), strict=True) if n} == NEGATED
    both = hyb.rule(torch.tensor([40000]))[0] / hyb.table()[177]
    assert both.tolist() == [-1, 1]


@pytest.mark.parametrize("name", PATHS)
def test_encoder_finds_the_published_paths(name: str) -> None:
    element, error, states = PATHS[name]
    codes, found = path(element, WAVE)
    assert " ".join(f"{s:04x}" for s in found.tolist()) == states
    values = element._code(torch.device("cpu")).table[found.long()].view(-1)
    assert (values - WAVE).square().mean().item() == pytest.approx(error, rel=2e-3)
    assert torch.equal(codes.int(), found & (1 << element.bits) - 1)


def test_stream_of_codes_is_that_of_exllamav3() -> None:
    """Codes of 4 bits, most significant first: words 3c23 dc83 872d 67a3, and state i ends with bit 4 (i + 1)."""
    codes, states = path(PATHS["mul1"][0], WAVE)
    stream = "".join(f"{code:x}" for code in codes.tolist())
    assert stream == "3c23dc83872d67a3"
    ring = stream + stream
    assert [f"{s:04x}" for s in states.tolist()] == [ring[i + 13 : i + 17] for i in range(16)]


def test_order_of_a_tile() -> None:
    """Place 8 l + i of exllamav3's tile [in, out]: rows r0, r0 + 1, r0 + 8, r0 + 9 of column c0, then of c0 + 8."""
    matrix = torch.arange(32 * 48).view(32, 48).float()
    sequences = _trellis._sequences(matrix)
    assert torch.equal(_trellis._matrix(sequences, 2), matrix)
    tile = matrix[16:, 32:].T
    for lane in range(32):
        row, column = 2 * (lane % 4), lane // 4
        expected = [tile[row + r, column + c] for c in (0, 8) for r in (0, 1, 8, 9)]
        assert sequences[5, 8 * lane : 8 * lane + 8].tolist() == expected


@pytest.mark.parametrize("name", ["trellis1", "trellis1.5", "trellis3", "trellis8", "hyb2", "trellis_short3"])
def test_paths_are_closed(name: str) -> None:
    """Each state holds the codes before it, around the ring; the same bits a slow walk finds."""
    element = dtypes.get(name)
    codes = torch.randint(0, element.codes, (3, element.step[2]), generator=torch.Generator().manual_seed(0))
    states = element.states(codes.to(torch.uint8))
    state = 0
    for code in [*codes[1].tolist(), *codes[1].tolist()]:
        state = (state << element.bits | code) % (1 << element.length)
        last = state
    assert states[1, -1] == last
    ahead = (states << element.bits & (1 << element.length) - 1) | codes.roll(-1, 1)
    assert torch.equal(states.roll(-1, 1).long(), ahead)


def test_a_small_code_is_searched_to_the_end() -> None:
    """L = 4, k = 1, rings of 8: all 256 closed paths tried; the two passes come close to the best and often reach it."""
    element = Trellis("small", 1, trellis.mul1, length=4)
    table = element._code(torch.device("cpu")).table[:, 0]
    every = (torch.arange(256)[:, None] >> torch.arange(7, -1, -1) & 1).to(torch.uint8)
    x = normal(64, 8)
    errors = (table[element.states(every).long()][None] - x[:, None]).square().sum(-1)
    codes = _viterbi.search(x[..., None], element._code(torch.device("cpu")))
    found = (table[element.states(codes).long()] - x).square().sum(-1)
    assert (found >= errors.amin(1) - 1e-5).all()
    assert (found < errors.amin(1) + 1e-5).float().mean() > 0.6


@pytest.mark.parametrize("name", ["trellis1.5", "trellis4", "trellis8", "hyb2", "trellis_short2"])
def test_values_of_codes_come_back(name: str) -> None:
    element = dtypes.get(name)
    codes = torch.randint(element.codes, (1, 2 * element.step[2]), generator=torch.Generator().manual_seed(0))
    values = element.decode(codes.to(torch.uint8))
    assert torch.equal(element.round(values), values)


@pytest.mark.parametrize(("name", "size", "expected"), DISTORTION)
def test_distortion(name: str, size: float, expected: float) -> None:
    """16 tiles of shuffled quantiles; other shuffles differ by 0.5 percent at 16 bits of state, by 1.5 at 12."""
    element = dtypes.get(name)
    order = torch.randperm(4096, generator=torch.Generator().manual_seed(0)).double()
    x = torch.special.ndtri((order + 0.5) / 4096).float().view(16, 256)
    found = element.round(x * size * element.rms) / (size * element.rms)
    assert (found - x).square().mean().item() == pytest.approx(expected, rel=0.02)


def test_shapes_and_refusals() -> None:
    element = dtypes.get("trellis_short2")
    codes = element.encode(normal(32, 48))
    assert codes.shape == (2, 768) and codes.dtype == torch.uint8 and codes.max() < element.codes
    assert torch.equal(element.decode(codes[1:]), element.decode(codes)[16:])
    assert element.encode(normal(0, 48)).shape == (0, 768) and element.decode(codes[:0]).shape[0] == 0
    with pytest.raises(ShapeError, match="24 x 48"):
        element.encode(normal(24, 48))
    with pytest.raises(FormatError, match=r"trellis4\.5"):
        dtypes.get("trellis4.5")


def test_an_outlier_spoils_no_other_tile_and_little_of_its_own() -> None:
    element = dtypes.get("trellis_short4")
    x = normal(16, 32)
    hit = x.clone()
    hit[3, 5] = 1e30
    found, other = element.round(x), element.round(hit)
    assert torch.equal(found[:, 16:], other[:, 16:])
    near = (other - x).square()[:, :16]
    near[3, 5] = 0.0
    assert near.mean() < 4 * (found - x).square()[:, :16].mean()
