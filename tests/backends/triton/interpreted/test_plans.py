"""A plan made without Triton is the one that is launched."""

import pytest
import torch
from solving import ANDERSON, SMALL, affine, agree, tail

from attractor_kernels.backends import use_plan
from attractor_kernels.backends.triton import launch, planning
from attractor_kernels.ops._declare import SolveResult


@pytest.mark.parametrize(("dim", "hidden"), [(5, 7), (33, 21)])
@pytest.mark.parametrize("name", list(launch.PROBLEMS))
@pytest.mark.parametrize("mixed", [False, True])
def test_sizes_of_every_operator(name, dim, hidden, mixed):
    def new(*shape):
        return torch.zeros(shape)

    options = tail(ANDERSON, history=3, mixed=mixed)
    v, q = new(9, dim), new(9, hidden)
    arguments = {
        "solve_affine": (v, v, new(dim, dim), None, None, 1, 0),
        "solve_mlp": (v, v, new(hidden, dim), None, new(dim, hidden), None, None, 0.5, 2, 1e-5, 1),
        "solve_gated": (v, new(9, 2 * dim), new(2 * dim, dim)),
    }
    for kind in ("adjoint", "tangent"):
        arguments[f"solve_mlp_{kind}"] = (v, v, q, v, new(9), new(hidden, dim), new(dim, hidden), None, 0.5, 2)
        arguments[f"solve_gated_{kind}"] = (v, v, new(9, 2 * dim), v, new(2 * dim, dim))
    units = hidden if name.startswith("solve_mlp") else 0
    with use_plan(name, mixed=True):
        launched = launch.prepare(name, (*arguments[name], *options), SMALL)[2]
        planned = planning.plan_call(
            name,
            SMALL,
            batch=9,
            dim=dim,
            hidden=units,
            products=planning.multiply_adds(name, dim, units),
            solver=ANDERSON,
            history=3,
            dtype=torch.float32,
            mixed=mixed,
        )
    assert planned == launched
    assert planned.kept == (planning.KEPT.get(name, 0) if mixed else 0)


@pytest.mark.parametrize("mixed", [False, True])
def test_scratch_is_as_planned(mixed):
    case, options = affine(20, 6), tail(ANDERSON, mixed=mixed)
    arguments = (*(None if t is None else t.float() for t in case.tensors), *case.constants, *options)
    with use_plan("solve_affine", mixed=True):
        call, _, plan = launch.prepare("solve_affine", arguments, SMALL)
    vectors, control = call.arguments[4:6]
    assert vectors.nbytes + control.nbytes == plan.scratch_bytes
    assert vectors.shape[1] == 3 + 2 * 4 + 2 * mixed


def test_a_plan_chosen_by_hand_is_launched():
    case, options = affine(20, 6), tail(max_steps=4)
    arguments = (*(None if t is None else t.float() for t in case.tensors), *case.constants, *options)
    with use_plan("solve_affine", rows=32, warps=2, stages=1):
        call, _, plan = launch.prepare("solve_affine", arguments, SMALL)
        got = SolveResult(*launch.solve_rows("solve_affine", arguments, SMALL))
    assert plan.rows == 32 and call.keywords["num_warps"] == 2 and call.keywords["num_stages"] == 1
    agree(got, case.reference(options))
