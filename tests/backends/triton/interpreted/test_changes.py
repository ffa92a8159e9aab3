"""Parts of a solve in mixed precision by themselves: what a row keeps of its products, which differences it mixes."""

import re
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from solving import normal

from attractor_kernels.backends.triton import mixed_precision
from attractor_kernels.backends.triton.anderson import leave_out, store_gram_row
from attractor_kernels.backends.triton.changes import keep_change, kept_at, whose_turn
from attractor_kernels.backends.triton.loop import Tile
from attractor_kernels.backends.triton.mixed_precision import CHANGES, FULL, NOTHING
from attractor_kernels.backends.triton.small_solve import System, solve_small

ROWS, ENTRIES = 4, 16
HEADER = Path(__file__).parents[4] / "csrc" / "common" / "mixed_precision.h"


@pytest.mark.skipif(not HEADER.exists(), reason="the sources of the compiled part are not here")
def test_constants_are_those_of_the_compiled_rules():
    found = dict(re.findall(r"constexpr double k(\w+) = ([-\d.e]+);", HEADER.read_text()))
    ours = {"Bfloat16Refresh2": "BFLOAT16_REFRESH2", "LeastGain2": "LEAST_GAIN2", "PlainRefresh2": "PLAIN_REFRESH2"}
    assert {name: float(value) for name, value in found.items()} == {
        theirs: getattr(mixed_precision, name).value for theirs, name in ours.items()
    }


@triton.jit
def keep(z, due, where, scratch, R: tl.constexpr, C: tl.constexpr):
    rows, cols = tl.arange(0, R), tl.arange(0, C)
    kept = kept_at(scratch + rows * (3 * C), scratch + rows * (3 * C) + C, C)
    x = tl.load((z + rows * C)[:, None] + cols[None, :])
    keep_change(kept, x, tl.load(due + rows), tl.load(where + rows) > 0, cols, Tile(R, C, 16, 0, "ieee", 2))


def test_what_rounding_leaves_of_a_change_stays_in_the_next():
    """After any steps the changes add up to what the products stand for: the last iterate but for a rounding."""
    scratch = torch.full((ROWS, 3, ENTRIES), torch.nan)
    change, stands_for, products = scratch[:, 0].view(torch.bfloat16)[:, :ENTRIES], scratch[:, 1], scratch[:, 2]

    def step(z, due, where=(1, 1, 1, 1)):
        keep[(1,)](z, torch.tensor(due, dtype=torch.float64), torch.tensor(where), scratch, R=ROWS, C=ENTRIES)

    z = normal(ROWS, ENTRIES).float()
    z[1] = 0
    full, known = FULL.value, NOTHING.value
    step(z, [full, known, full, full], [1, 1, 0, 1])
    assert torch.equal(stands_for[[0, 1, 3]], z[[0, 1, 3]]) and stands_for[2].isnan().all()
    assert (products[1] == 0).all() and products[[0, 2, 3]].isnan().all()
    total = z.double()
    others = [0, 1]
    for size in (1.0, 0.1, 1e-2, 1e-3):
        z += size * normal(ROWS, ENTRIES).float()
        before = stands_for.clone()
        step(z, [CHANGES.value, CHANGES.value, full, full], [1, 1, 0, 1])
        total += change.double()
        d = (z - before)[others]
        assert ((change.float()[others] - d).abs() <= 2.0**-8 * d.abs()).all()
        torch.testing.assert_close(stands_for[others].double(), total[others], rtol=0, atol=1e-6)
        assert torch.equal(stands_for[3], z[3]) and stands_for[2].isnan().all()
    assert ((z - stands_for)[others].norm() < 1e-4) and (stands_for != z)[others].any()


@triton.jit
def turns(due, live, works, full, R: tl.constexpr):
    rows = tl.arange(0, R)
    work, whole = whose_turn(tl.load(due + rows), tl.load(live + rows) > 0)
    tl.store(works + rows, work.to(tl.int32))
    tl.store(full + rows, whole.to(tl.int32))


@pytest.mark.parametrize(
    ("due", "live", "works", "full"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]),
        ([1, 0, 2, 0], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]),
        ([1, 1, 0, 2], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]),
        ([1, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 0]),
        ([0, 2, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]),
    ],
)
def test_rows_due_for_a_full_product_wait_for_each_other(due, live, works, full):
    got = torch.zeros(2, 4, dtype=torch.int32)
    turns[(1,)](torch.tensor(due, dtype=torch.float64), torch.tensor(live), got[0], got[1], R=4)
    assert got.tolist() == [works, full]


@triton.jit
def weights_of(sums, group, apart, steps, count, SLOTS: tl.constexpr):
    one = tl.arange(0, 1)
    at, columns, ones = sums + one, group + one, one >= 0
    leave_out(at, tl.load(apart + one), ones, SLOTS)
    n, time = tl.load(count + one), tl.load(steps + one)
    used = solve_small(System(at, columns + 1 + SLOTS, time), n, 0.0, columns + 1, SLOTS)
    tl.store(columns + SLOTS, used)
    store_gram_row(at, columns, time, n, SLOTS)


@pytest.mark.parametrize("apart", [(), (3,), (5,), (3, 5), (5, 6), (2, 6)])
def test_differences_between_two_maps_are_left_out(apart):
    """apart: the steps whose difference is; the others get the weights of least squares on their own."""
    slots = 5
    d, g = normal(7, 9), normal(9)
    group = torch.zeros(1 + slots + slots * slots, dtype=torch.float64)

    def number(x):
        return torch.tensor([x], dtype=torch.float64)

    for step in range(1, 7):
        count = min(step, slots - 1)
        ages = [step - age for age in range(count)]
        sums = torch.zeros(2 * slots, dtype=torch.float64)
        sums[2 : 2 + 2 * count] = torch.stack([x for k in ages for x in (d[k] @ d[step], d[k] @ g)])
        bits = sum(1 << age for age, k in enumerate(ages) if k in apart)
        weights_of[(1,)](sums, group, number(bits), number(step), number(count), SLOTS=slots)
    counted = [k for k in ages if k not in apart]
    want = dict(zip(counted, torch.linalg.lstsq(d[counted].T, g[:, None]).solution[:, 0].tolist(), strict=True))
    assert group[slots] == len(ages)
    got = group[1 : 1 + len(ages)]
    torch.testing.assert_close(got, torch.tensor([want.get(k, 0.0) for k in ages], dtype=torch.float64))
