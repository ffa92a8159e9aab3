"""A row depends on no other, in full precision and with products of changes."""

import pytest
import torch
from solving import ANDERSON, AUTO, PICARD, affine, agree, family, gated, tail

from attractor_kernels.backends import use_plan
from attractor_kernels.info import Status

FULL, MIXED = {}, dict(mixed=True, rtol=1e-4, max_steps=15)


def slow(rows, dim):
    return family("sym", rows, dim)


@pytest.mark.parametrize(
    ("make", "solver", "options"),
    [
        (slow, PICARD, FULL),
        (slow, AUTO, FULL),
        (affine, PICARD, MIXED),
        (affine, AUTO, MIXED),
        (gated, PICARD, MIXED),
    ],
)
def test_a_row_has_the_same_bits_in_every_tile(make, solver, options):
    """With products of changes quick rows among slow ones: they wait for others or not, in any of a program's lanes."""
    case, mixed = make(24, 12), options is MIXED
    if mixed:
        case.tensors[0][::2] = 0
        case.tensors[1][::3] *= 20
    options = tail(solver, history=2, **options)
    with use_plan(case.name, mixed=mixed, **{"programs": 1} if mixed else {}):
        whole = case.triton(options)
    others = [(slice(23, 24), 16), (torch.tensor([9, 23, 0, 3, 18]), 32)]
    if not mixed:  # whose products would be added up in another order
        others.append((slice(3, 4), 64))
    with use_plan(case.name, mixed=mixed):
        for rows, tile in others:
            part = case.triton(options, rows=rows, tile=tile)
            for a, b in zip(part[:4], whole[:4], strict=True):
                assert torch.equal(a, b[rows])


@pytest.mark.parametrize("solver", [PICARD, ANDERSON])
@pytest.mark.parametrize("mixed", [False, True])
def test_broken_rows_end_alone(solver, mixed):
    case = affine(6, 5)
    options = tail(solver, history=2, mixed=mixed)
    with use_plan(case.name, mixed=mixed):
        clean = case.triton(options)
        case.tensors[1][1, 2] = torch.nan
        case.tensors[0][4, 0] = torch.inf
        got = case.triton(options)
    want = case.reference(options, torch.float32)
    whole, broken = [0, 2, 3, 5], [1, 4]
    for a, b in zip(got[:4], clean[:4], strict=True):
        assert torch.equal(a[whole], b[whole])
    assert (got.status[broken] == Status.NONFINITE).all()
    for a, b in zip(got[:4], want[:4], strict=True):
        assert torch.equal(a[broken].isfinite(), b[broken].isfinite())
    if not mixed:
        agree(got, want)
