"""Sequences of points: published numbers, nets that stay nets, and the same bits from any slice."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import qmc
from torch import Tensor
from torch.torch_version import TorchVersion

from quadgrad._core.points import SEQUENCES, Lattice, Sequence, Sobol, joe_kuo, make_sequence
from quadgrad._core.points.digits import BITS
from quadgrad._core.points.hashing import fold_seed, hash_bits, hash_numbers, mix
from quadgrad._core.points.joe_kuo import DIMENSIONS, direction_numbers
from quadgrad._core.points.lattice import generating_vector

NAMES = tuple(SEQUENCES)
DTYPES = (torch.float64, torch.float32)
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    start=st.integers(0, 1 << BITS).map(lambda i: min(i, (1 << BITS) - 3000)) | st.integers(0, 5000),
    cuts=st.lists(st.integers(0, 3000), min_size=1, max_size=3),
)
def test_any_slices_give_the_same_bits(name: str, dtype: torch.dtype, start: int, cuts: list[int]) -> None:
    make = lambda: make_sequence(name, 3, seed=5, replicates=2, dtype=dtype)
    whole, one = make().points(start, 3000), make()
    places = [0, *sorted(cuts), 3000]
    pieces = [one.points(start + i, j - i) for i, j in zip(places, places[1:], strict=False)]
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    alone = make().points(start + cuts[0], 1)
    assert torch.equal(alone[:, 0], whole[:, cuts[0]] if cuts[0] < 3000 else alone[:, 0])


@pytest.mark.parametrize("name", NAMES)
def test_a_replicate_is_the_same_among_any_number(name: str) -> None:
    few, many = (make_sequence(name, 4, seed=1, replicates=n).points(7, 100) for n in (2, 16))
    assert torch.equal(few, many[:2])


@pytest.mark.parametrize("name", NAMES)
def test_a_dimension_is_the_same_among_any_number(name: str) -> None:
    few, many = (make_sequence(name, d, seed=1).points(7, 100) for d in (3, 40))
    assert torch.equal(few, many[..., :3])


@pytest.mark.parametrize("name", NAMES)
def test_float32_points_are_those_of_float64_to_their_digits(name: str) -> None:
    double, single = (make_sequence(name, 4, replicates=2, dtype=dtype).points(3, 1000) for dtype in DTYPES)
    assert single.dtype == torch.float32
    assert torch.equal((single.double() * 2**23 - 0.5), (double * 2**23).floor())


@pytest.mark.parametrize("name", NAMES)
def test_memory_holds_one_dimension_after_another(name: str) -> None:
    points = make_sequence(name, 4, replicates=3).points(5, 5000)
    assert points.shape == (3, 5000, 4)
    assert points[1, :, 2].is_contiguous()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", (0, 1 << 40, (1 << 52) - (1 << 14)))
def test_points_are_uniform_wherever_they_start(name: str, start: int) -> None:
    points = make_sequence(name, 6, seed=2, replicates=4).points(start, 1 << 14).flatten(0, 1)
    deviation = 5 / (12 * len(points)) ** 0.5
    assert (points.mean(dim=0) - 0.5).abs().max() < deviation
    assert (points.var(dim=0) - 1 / 12).abs().max() < deviation
    counts = torch.stack([torch.histc(column, 64, 0.0, 1.0) for column in points.T])
    assert ((counts - 1024) ** 2 / 1024).sum(dim=1).max() < 63 + 6 * 126**0.5


@pytest.mark.parametrize("name", NAMES)
def test_replicates_and_seeds_are_independent(name: str) -> None:
    one, other, again = (make_sequence(name, 5, seed, replicates=500).points(0, 64) for seed in (3, 4, 3))
    assert torch.equal(one, again)
    drawn = torch.cat([one, other])  # 1,000 randomizations
    assert len(drawn.flatten().unique()) == drawn.numel()
    first = drawn[:, 0]  # of one point
    assert (first.mean(dim=0) - 0.5).abs().max() < 5 / (12 * 1000) ** 0.5
    assert torch.corrcoef(first.T).sub(torch.eye(5)).abs().max() < 5 / 1000**0.5
    # Neither points nor what integration makes of them tell anything about the next replicate or the other seed.
    errors = (drawn**3).mean(dim=1) - 0.25
    for values in (first, errors):
        for x, y in ((values[:-1], values[1:]), (values[:500], values[500:])):
            cross = torch.corrcoef(torch.cat([x.T, y.T]))[:5, 5:]
            assert cross.abs().max() < 5 / len(x) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_seeds_of_any_length_and_sign_differ(name: str) -> None:
    seeds = (0, 1, -1, 2**63, -(2**63), 2**64, -(2**64), 2**64 + 1, 2**200, np.int64(7), torch.tensor(8))
    points = torch.stack([make_sequence(name, 2, seed=seed).points(0, 4) for seed in seeds])
    assert len(points.unique(dim=0)) == len(seeds)
    assert torch.equal(make_sequence(name, 2, seed=np.int64(7)).points(0, 4), points[9])


@pytest.mark.parametrize("name", NAMES)
def test_no_global_generator_is_touched(name: str) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    sequence = make_sequence(name, 3, replicates=2)
    sequence.shifted(sequence.points(0, 100)[0], torch.arange(5))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


@pytest.mark.parametrize("name", NAMES)
def test_points_are_constants_inside_transforms_and_inference_mode(name: str) -> None:
    sequence, fresh = (make_sequence(name, 2, seed=9) for _ in range(2))
    expected = make_sequence(name, 2, seed=9).points(0, 8)
    inside = lambda x: (x * sequence.points(0, 8)).sum()
    assert torch.equal(torch.func.grad(inside)(torch.ones(8, 2, dtype=torch.float64)), expected[0])
    assert torch.func.vmap(inside)(torch.ones(3, 8, 2, dtype=torch.float64)).shape == (3,)
    with torch.inference_mode():
        fresh.points(0, 8)
    for used in (sequence, fresh):
        points = used.points(0, 8)
        assert torch.equal(points, expected)
        assert not points.is_inference()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (scale * fresh.points(0, 8)).sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_no_points_and_the_last_ones(name: str) -> None:
    sequence = make_sequence(name, 2, replicates=3)
    assert sequence.points(5, 0).shape == (3, 0, 2)
    assert sequence.points((1 << BITS) - 1, 1).shape == (3, 1, 2)
    for start, count in ((-1, 2), (0, -1), (1 << BITS, 1), ((1 << BITS) - 1, 2)):
        with pytest.raises(ValueError, match=r"indices go from 0 to 2\*\*52 - 1"):
            sequence.points(start, count)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"sequence='halton' is not known: choose one of 'sobol', "):
        make_sequence("halton", 2)
    for seed in (1.0, "0", True, None):
        with pytest.raises(TypeError, match=r"seed=.* is not an integer: pass one, for example seed=0"):
            make_sequence("sobol", 2, seed=seed)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="d=0 must be at least 1"):
        make_sequence("random", 0)
    with pytest.raises(TypeError, match=r"d=2\.0 is not an integer"):
        make_sequence("random", 2.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="replicates=0 must be at least 1"):
        make_sequence("random", 1, replicates=0)
    with pytest.raises(TypeError, match="float64 or float32, not torch.float16"):
        make_sequence("random", 1, dtype=torch.float16)
    with pytest.raises(ValueError, match=r'd=4097: .* up to 4,096 dimensions\. Pass sequence="random"'):
        make_sequence("sobol", DIMENSIONS + 1)
    with pytest.raises(ValueError, match="pass replicates=1"):
        Sobol(2, replicates=2, scramble=False)
    with pytest.raises(
        ValueError, match=r'd=1025: .* up to 1,024 dimensions\. Pass sequence="sobol", which has 4,096'
    ):
        make_sequence("lattice", 1025)


def test_numbers_of_points_are_rounded_up_to_what_spreads_evenly() -> None:
    for n, power in ((1, 1), (2, 2), (3, 4), (1000, 1024), (1024, 1024), (1025, 2048)):
        assert make_sequence("sobol", 2).rounded(n) == make_sequence("lattice", 2).rounded(n) == power
        assert make_sequence("random", 2).rounded(n) == n
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        make_sequence("sobol", 2).rounded(0)


# ------------------------------------------------------------------------------------ shifts of items


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_items_have_independent_shifts_of_the_same_points(name: str, dtype: torch.dtype) -> None:
    sequence = make_sequence(name, 3, seed=1, dtype=dtype)
    points, keys = sequence.points(0, 64)[0], torch.arange(400).reshape(20, 20)
    shifted = sequence.shifted(points, keys)
    assert shifted.shape == (20, 20, 64, 3)
    assert shifted.dtype == dtype
    assert shifted[3, 4, :, 1].is_contiguous()
    assert shifted.min() > 0
    assert shifted.max() < 1
    assert torch.equal(sequence.shifted(points, keys[3, 4]), shifted[3, 4])  # by its key alone
    if TorchVersion(torch.__version__) >= "2.13":  # before, lanes could not be viewed as another dtype
        assert torch.equal(torch.func.vmap(lambda key: sequence.shifted(points, key))(keys), shifted)
    at_one = shifted[:, :, 17].reshape(400, 3).double()
    assert (at_one.mean(dim=0) - 0.5).abs().max() < 5 / (12 * 400) ** 0.5
    assert (at_one.var(dim=0) - 1 / 12).abs().max() < 5 * (1 / 180 / 400) ** 0.5
    assert torch.corrcoef(torch.cat([at_one[:-1].T, at_one[1:].T])).sub(torch.eye(6)).abs().max() < 5 / 20
    assert len(at_one.unique(dim=0)) == 400


def test_only_points_of_the_sequence_are_shifted_and_by_integers() -> None:
    sequence, keys = make_sequence("sobol", 3, dtype=torch.float32), torch.arange(2)
    with pytest.raises(
        TypeError, match=r"points of torch\.float64 are not of this sequence, which makes torch\.float32"
    ):
        sequence.shifted(torch.rand(4, 3, dtype=torch.float64), keys)
    with pytest.raises(ValueError, match=r"points of shape \(4, 2\) are not of this sequence of d=3"):
        sequence.shifted(torch.rand(4, 2), keys)
    with pytest.raises(TypeError, match=r"keys of torch\.float32 are not integers"):
        sequence.shifted(sequence.points(0, 4)[0], keys.float())


def test_shifts_differ_from_those_of_replicates_and_other_seeds() -> None:
    keys = torch.arange(16)
    drawn = [
        sequence.shifted(Sobol(2, scramble=False).points(0, 1)[0], keys)[:, 0]
        for sequence in (Sobol(2, seed=0), Sobol(2, seed=1))
    ]
    drawn += [Sobol(2, seed=0, replicates=16).points(0, 1)[:, 0]]
    assert len(torch.cat(drawn).flatten().unique()) == 96


# ---------------------------------------------------------------------------------------------- Sobol


def test_unscrambled_points_are_scipys_up_to_half_a_digit() -> None:
    ours = Sobol(1000, scramble=False).points(0, 1 << 14)[0].numpy()
    theirs = qmc.Sobol(1000, scramble=False, bits=BITS).random(1 << 14)
    assert np.array_equal(ours - theirs, np.full_like(ours, 0.5**53))


def test_direction_numbers_are_torchs() -> None:
    ours = direction_numbers(DIMENSIONS, CPU)[:, :30] >> (BITS - 30)
    assert torch.equal(ours, torch.quasirandom.SobolEngine(DIMENSIONS).sobolstate)


def test_direction_numbers_follow_the_recurrence_written_out() -> None:
    with np.load(Path(joe_kuo.__file__).with_name("joe_kuo.npz")) as table:
        polynomials, initial = table["polynomials"].tolist(), table["initial"].tolist()
    numbers = direction_numbers(DIMENSIONS, CPU).tolist()
    for dimension in (1, 2, 3, 17, 500, DIMENSIONS - 1):
        coefficients = [int(digit) for digit in bin(polynomials[dimension])[2:]]
        s = len(coefficients) - 1
        m = initial[dimension][:s]
        for k in range(s, BITS):
            m.append(m[k - s])
            for i in range(1, s + 1):
                m[k] ^= coefficients[i] * m[k - i] << i
        assert numbers[dimension] == [value << (BITS - 1 - k) for k, value in enumerate(m)]


def test_the_table_is_scipys_cut() -> None:
    path = Path(scipy.__file__).parent / "stats" / "_sobol_direction_numbers.npz"
    with np.load(Path(joe_kuo.__file__).with_name("joe_kuo.npz")) as ours, np.load(path) as theirs:
        assert np.array_equal(ours["polynomials"], theirs["poly"][:DIMENSIONS])
        assert np.array_equal(ours["initial"], theirs["vinit"][:DIMENSIONS, :16])


def spread(x: Tensor, y: Tensor, m: int) -> int:
    """Return the t-value of 2**m points in the square: the least t such that all intervals of 2**(t-m) are even."""
    for t in range(m + 1):
        shapes = [(a, m - t - a) for a in range(m - t + 1)]
        cells = [((x * 2**a).long() << b) + (y * 2**b).long() for a, b in shapes]
        if all((torch.bincount(cell, minlength=1 << (m - t)) == 1 << t).all() for cell in cells):
            return t
    raise AssertionError("points outside the square")


@pytest.mark.parametrize("m", (4, 7, 10))
def test_scrambling_and_shifts_keep_the_t_values_of_projections(m: int) -> None:
    start = 5 << m  # also of later aligned blocks
    plain = Sobol(24, scramble=False).points(start, 1 << m)[0]
    sequence = Sobol(24, seed=m, replicates=2)
    scrambled = sequence.points(start, 1 << m)
    moved = sequence.shifted(scrambled[0], torch.arange(2))
    pairs = [(0, 1), (1, 2), (3, 9), (5, 20), (22, 23)]
    values = [[spread(x[:, i], x[:, j], m) for i, j in pairs] for x in (plain, *scrambled, *moved)]
    assert values[0][0] == 0  # the first two dimensions are a (0, m, 2)-net
    assert max(values[0]) > 0
    assert all(row == values[0] for row in values[1:])


def test_each_dimension_is_stratified_to_its_last_digit() -> None:
    for dtype, count in ((torch.float64, 1 << 12), (torch.float32, 1 << 12)):
        points = Sobol(50, seed=1, replicates=3, dtype=dtype).points(0, count)
        cells = (points * count).floor().sort(dim=1).values
        assert torch.equal(cells, torch.arange(count, dtype=dtype)[:, None].expand(3, count, 50))


def test_all_digits_are_random() -> None:
    points = Sobol(3, seed=1, replicates=500).points(0, 2)
    digits = (points[..., None] * 2.0 ** torch.arange(1, BITS + 1)).floor() % 2  # (replicate, index, d, digit)
    assert (digits.mean(dim=0) - 0.5).abs().max() < 5 * 0.5 / 500**0.5
    turned = (digits[:, 0] != digits[:, 1]).double()  # the first column of each scrambling matrix
    assert (turned[..., 0] == 1).all()
    for column in (turned[..., 1:], (turned - turned.roll(1, dims=1)).abs()[..., 1:]):  # alone, and beside another
        assert (column.mean(dim=0) - 0.5).abs().max() < 5 * 0.5 / 500**0.5


def test_scrambled_points_integrate_as_well_as_they_should() -> None:
    # (x1 x2 x3 ...) products of smooth functions: the root mean square error falls like n**-1.5.
    def error(n: int) -> float:
        x = Sobol(3, seed=0, replicates=32).points(0, n)
        return float((x.exp() / (np.e - 1)).prod(dim=-1).mean(dim=1).sub(1).square().mean().sqrt())

    assert error(1 << 12) < error(1 << 6) / 2 ** (1.2 * 6)


# -------------------------------------------------------------------------------------------- lattice


def reversed_digits(index: int) -> int:
    """Return BITS binary digits of an index in reverse."""
    return int(f"{index:0{BITS}b}"[::-1], 2)


def test_lattice_points_are_multiples_of_the_generating_vector() -> None:
    vector = generating_vector()[:7].tolist()
    sequence = Lattice(7, seed=2, replicates=2)
    digits = lambda points: (points * 2.0**BITS).floor().to(torch.int64)
    origin = digits(sequence.points(0, 1))
    for start in (0, 1000, (1 << 40) + 12345):
        moved = (digits(sequence.points(start, 30)) - origin) % (1 << BITS)
        expected = [[reversed_digits(i) * z % (1 << BITS) for z in vector] for i in range(start, start + 30)]
        assert moved.tolist() == [expected, expected]


def test_each_dimension_of_the_lattice_is_a_shifted_grid() -> None:
    points = Lattice(1024, replicates=2).points(0, 256)
    gaps = points.sort(dim=1).values.diff(dim=1)
    assert (gaps - 1 / 256).abs().max() < 1e-15


def merit(vector: np.ndarray, m: int) -> float:
    """Return the mean over all pairs of components of the squared worst-case error in Korobov's space."""
    multiples = np.arange(1 << m)[:, None] * vector % (1 << m) / (1 << m)
    omega = 2 * np.pi**2 * (multiples * multiples - multiples + 1 / 6)
    d = len(vector)
    return float((omega.sum(axis=1) ** 2 - (omega**2).sum(axis=1)).mean() / (d * (d - 1)))


@pytest.mark.parametrize(
    ("d", "m", "bound"),  # what was measured, a little more
    [(5, 8, 8e-3), (5, 12, 6.2e-5), (5, 16, 1.3e-6), (20, 10, 1.5e-3), (20, 16, 1.7e-6), (100, 12, 3e-4)],
)
def test_the_generating_vector_is_a_good_one(d: int, m: int, bound: float) -> None:
    vector = generating_vector()
    assert vector.shape == (1024,)
    assert (vector % 2 == 1).all()
    assert len(np.unique(vector)) == 1024
    figure = merit(vector[:d], m)
    assert figure < bound
    numbers = np.random.default_rng(0)
    others = [merit(2 * numbers.integers(0, 1 << 19, d) + 1, m) for _ in range(5)]
    assert figure < np.median(others)


def bumps(x: Tensor) -> Tensor:
    """Return a smooth periodic function whose integral over the cube is 1; it has a kink in its derivative at 0."""
    return (1 + 0.5 * torch.cos(2 * torch.pi * x) + x * x - x + 1 / 6).prod(dim=-1)


def error(sequence: Sequence, n: int) -> float:
    """Return the root mean square over replicates of the error for the function above."""
    return float(bumps(sequence.points(0, n)).mean(dim=1).sub(1).square().mean().sqrt())


@pytest.mark.parametrize(
    ("name", "d", "n", "bound"),
    [
        ("lattice", 2, 1 << 16, 1e-9), ("lattice", 4, 1 << 14, 4e-7), ("lattice", 8, 1 << 16, 2e-5),
        ("sobol", 2, 1 << 16, 1e-7), ("sobol", 8, 1 << 16, 3e-3),
    ],
)  # fmt: skip
def test_errors_for_smooth_periodic_functions_are_small(name: str, d: int, n: int, bound: float) -> None:
    assert error(make_sequence(name, d, replicates=16), n) < bound


# --------------------------------------------------------------------------------------------- random


def test_random_points_are_as_good_as_random_and_no_better() -> None:
    # Of each factor, the cosine, the polynomial, and what they have in common.
    deviation = ((1 + 1 / 8 + 1 / 180 + 1 / (2 * np.pi**2)) ** 3 - 1) ** 0.5
    for n in (100, 10_000):
        assert error(make_sequence("random", 3, replicates=400), n) == pytest.approx(deviation / n**0.5, rel=0.15)


def test_random_points_fill_cells_as_chance_would() -> None:
    points = make_sequence("random", 4, seed=1).points(0, 1 << 16)[0]
    cells = (points * 16).floor().to(torch.int64)
    neighbours = torch.cat([cells[:, 0], cells[:-1, 2]]), torch.cat([cells[:, 3], cells[1:, 2]])
    for x, y in (neighbours, (cells[:, 0], cells[:, 1])):
        counts = torch.bincount(16 * x + y, minlength=256).double()
        expected = len(x) / 256
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi - 255) < 5 * (2 * 255) ** 0.5


def test_random_points_have_any_number_of_dimensions() -> None:
    points = make_sequence("random", 100_000).points(0, 3)[0]
    assert torch.corrcoef(points).sub(torch.eye(3)).abs().max() < 5 / 100_000**0.5
    assert len(points.flatten().unique()) == 300_000


# ----------------------------------------------------------------------------------- never 0, never 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_digits_are_neither_zero_nor_one(name: str, dtype: torch.dtype) -> None:
    sequence: Sequence = make_sequence(name, 1, dtype=dtype)
    ones = (1 << sequence.digits.count) - 1
    digits = torch.tensor([0, ones], dtype=sequence.digits.integer) | sequence.digits.one
    lowest, highest = sequence.digits.numbers(digits.clone())
    half = 0.5 ** (sequence.digits.count + 1)
    assert (lowest.item(), highest.item()) == (half, 1 - half)
    assert torch.equal(sequence.digits.digits(torch.stack([lowest, highest])), digits)


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_million_float32_numbers_are_neither_zero_nor_one(name: str) -> None:
    sequence = make_sequence(name, 10, seed=11, dtype=torch.float32)
    extremes = [sequence.points(block << 16, 1 << 16).aminmax() for block in range(160)]
    assert min(low for low, _ in extremes) == 0.5**24  # reached, so that it is a test
    assert max(high for _, high in extremes) == 1 - 0.5**24


# -------------------------------------------------------------------------------------------- hashing


def test_numbers_and_tensors_are_hashed_alike() -> None:
    numbers = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    assert mix(torch.tensor(numbers)).tolist() == [mix(number) for number in numbers]
    keys = torch.tensor(numbers)
    table = hash_bits((7, -7), keys[:, None], keys)
    assert table.tolist() == [[hash_numbers(7, -7, a, b) for b in numbers] for a in numbers]
    assert len(table.flatten().unique()) == 36


def test_the_finalizer_is_splitmix64s() -> None:
    golden = 0x9E3779B97F4A7C15  # the first numbers of the generator with seed 0, as published
    first = [mix(golden * k) % 2**64 for k in (1, 2, 3)]
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_every_bit_turns_over_half_of_the_bits() -> None:
    keys = torch.arange(2000)
    for key in (0, 1):  # the first and the last that is absorbed
        plain = hash_bits((3,), *((keys, keys * 0) if key else (keys * 0, keys)))
        for bit in (0, 1, 31, 62):
            turned = keys ^ (1 << bit)
            other = hash_bits((3,), *((turned, keys * 0) if key else (keys * 0, turned)))
            shares = ((plain ^ other)[:, None] >> torch.arange(64) & 1).double().mean(dim=0)
            assert (shares - 0.5).abs().max() < 5 * 0.5 / 2000**0.5


def test_seeds_that_fit_stay_as_they_are() -> None:
    assert [fold_seed(seed) for seed in (0, -5, 2**63 - 1, -(2**63))] == [0, -5, 2**63 - 1, -(2**63)]
    longer = [2**63, 2**64, 2**64 - 1, -(2**63) - 1, -(2**64), 2**128, 2**128 + 2**64]
    folded = {fold_seed(seed) for seed in longer}
    assert len(folded) == len(longer)
    assert all(-(2**63) <= seed < 2**63 for seed in folded)


@pytest.mark.parametrize("name", SEQUENCES)
def test_one_replicate_alone_is_that_of_all(name: str) -> None:
    every = make_sequence(name, 3, seed=5, replicates=4)
    for number in range(4):
        assert torch.equal(every.replicate(number).points(7, 50)[0], every.points(7, 50)[number])
