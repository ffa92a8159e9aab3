"""Every solving kernel compiles for sm_80, sm_90 and sm_100 as it is planned, and keeps to its registers."""

import re

import pytest
import torch
import triton
from compiling import DEVICES, SOLVERS, solve_call, solve_kernel, tail, usage

from attractor_kernels.backends import plan, use_plan
from attractor_kernels.backends.override import told
from attractor_kernels.backends.plan_table import Kind, PlanEntry
from attractor_kernels.backends.triton import HISTORY_LIMIT, STATE_LIMIT, launch
from attractor_kernels.backends.triton.planning import KEPT

ARCHITECTURES = tuple(DEVICES)
NAMES = tuple(launch.PROBLEMS)
PRECISIONS = [(False, False), (True, False), (True, True)]  # mixed, with products of changes

# One of each kernel and each kind of tile; test_every_plan has the rest.
QUICK = [
    (90, "solve_affine", 256, "auto", {}),
    (80, "solve_affine", 128, "auto6", {"batch": 100000}),
    (90, "solve_affine", 256, "auto", {"mixed": True, "changes": True}),
    (80, "solve_affine", 128, "auto6", {"mixed": True, "changes": True, "batch": 100000}),
    (100, "solve_affine", 33, "picard", {"mixed": True, "changes": True}),
    (100, "solve_affine", 16, "picard", {"dtype": torch.bfloat16}),
    (90, "solve_mlp", 128, "auto", {"gated": True, "norm": 1}),
    (90, "solve_mlp_adjoint", 128, "anderson", {"gated": True}),
    (100, "solve_mlp_tangent", 64, "auto", {"mixed": True}),
    (80, "solve_gated", 128, "auto", {"mixed": True, "changes": True}),
    (90, "solve_gated_adjoint", 128, "anderson", {}),
    (90, "solve_gated_tangent", 64, "anderson", {"dtype": torch.float16}),
]


def allowed_spills(planned):
    """Bytes a thread: what the widest tiles come out above the 255 registers there are."""
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return 200 if planned.slots > 6 or version < (3, 7) else 40


def check(architecture, name, dim, solver, batch=2000, mixed=False, rows=None, changes=False, **choices):
    """changes: whether products of changes are taken, where mixed precision has such."""
    options = tail(SOLVERS[solver], mixed, trace=True)
    hidden = choices.pop("hidden", 512)
    call = solve_call(name, batch, dim, hidden, options, **choices)
    with use_plan(name, **told(name, "triton"), mixed=changes):
        kernel, planned = solve_kernel(name, architecture, call, rows)
    assert (planned.kept > 0) == changes
    used = usage(kernel)
    assert used.stack <= allowed_spills(planned), f"{used} spills"
    assert used.registers * planned.warps * 32 <= plan.REGISTERS
    assert used.shared <= DEVICES[architecture].shared_bytes
    assert used.shared <= 2 * planned.shared_bytes
    return kernel, planned


@pytest.mark.parametrize(("architecture", "name", "dim", "solver", "choices"), QUICK, ids=str)
def test_compiles_within_its_registers(architecture, name, dim, solver, choices):
    check(architecture, name, dim, solver, **choices)


TF32, BF16 = "m16n8k8.row.col.f32.tf32.tf32.f32", "m16n8k16.row.col.f32.bf16.bf16.f32"


@pytest.mark.parametrize(
    ("mixed", "changes", "precision", "tensor"),
    [
        (False, False, "ieee", set()),
        (True, False, "tf32x3", {TF32}),
        (True, True, "bf16 changes", {TF32, BF16}),
    ],
)
def test_products_are_the_planned_ones(mixed, changes, precision, tensor):
    """Full precision multiplies float32 numbers outside the tensor cores, mixed precision splits them into TF32."""
    kernel, planned = check(90, "solve_affine", 64, "picard", mixed=mixed, changes=changes)
    assert planned.precision == precision
    assert set(re.findall(r"mma\.sync\.aligned\.(\S+)", kernel.asm["ptx"])) == tensor
    assert tensor or "fma.rn.f32" in kernel.asm["ptx"]


def reduced_layouts(kernel):
    """How each sum over a row is spread: entries, threads and warps along the row, for the row's padded size."""
    text = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"(#blocked\d*) = #ttg\.blocked<\{(.*?)\}>", text))
    found = set()
    for _, columns, name in re.findall(r"\(tensor<(\d+)x(\d+)xf32, (#blocked\d*)>\) -> tensor<\d+xf32", text):
        parts = re.findall(r"\[\d+, (\d+)\]", layouts[name])
        found.add((int(columns), *map(int, parts[:3])))
    return found


@pytest.mark.parametrize(
    ("dim", "few", "many", "changes"),
    [(16, 32, 64, False), (64, 16, 64, False), (128, 16, 32, False), (64, 16, 32, True), (128, 16, 32, True)],
)
def test_a_row_is_summed_in_the_same_order_in_every_tile(dim, few, many, changes):
    kind = dict(mixed=changes, changes=changes)
    layouts = [reduced_layouts(check(90, "solve_affine", dim, "picard", rows=rows, **kind)[0]) for rows in (few, many)]
    assert layouts[0] and layouts[0] == layouts[1]


@pytest.mark.parametrize(
    ("name", "dim", "rows", "choices"),
    [
        ("solve_affine", 16, 64, {"warps": 8}),
        ("solve_affine", 64, 32, {"warps": 16, "registers": 128}),
        ("solve_affine", 128, 16, {"warps": 4, "stages": 2}),
        ("solve_mlp", 64, 32, {"warps": 4}),
        ("solve_gated_adjoint", 64, 32, {"warps": 4, "stages": 4}),
    ],
)
def test_a_row_is_summed_in_the_same_order_as_a_table_may_choose(name, dim, rows, choices):
    """What a table of measured plans is not refused for: warps that leave a thread its entries, any stages."""
    hidden = 512 if name == "solve_mlp" else 0
    PlanEntry(Kind("triton", name, "float32", "full", "picard", 1, dim, hidden), {"rows": rows, **choices})
    model, planned = check(90, name, dim, "picard")
    assert (planned.rows, planned.warps, planned.stages) != (rows, choices["warps"], choices.get("stages", 3))
    with use_plan(name, rows=rows, **choices):
        found = reduced_layouts(check(90, name, dim, "picard")[0])
    assert found and found == reduced_layouts(model)


def test_what_a_table_is_refused_for_sums_a_row_in_another_order():
    with pytest.raises(ValueError, match="in another order"):
        PlanEntry(Kind("triton", "solve_affine", "float32", "full", "picard", 1, 16), {"rows": 32, "warps": 8})
    model = reduced_layouts(check(90, "solve_affine", 16, "picard")[0])
    with use_plan("solve_affine", rows=32, warps=8):
        assert reduced_layouts(check(90, "solve_affine", 16, "picard")[0]) != model


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("solver", ["picard", "auto", "auto6"])
@pytest.mark.parametrize(("mixed", "changes"), PRECISIONS)
@pytest.mark.parametrize(("dim", "rows"), [(d, r) for d in (16, 32, 64, 128, 256) for r in (16, 32, 64)])
def test_every_plan_of_the_affine_cell(architecture, solver, mixed, changes, dim, rows):
    if not plan.LEAST_ENTRIES <= rows * dim <= plan.TILE_ENTRIES or (mixed and rows > 32):
        pytest.skip("not planned")
    check(architecture, "solve_affine", dim, solver, mixed=mixed, rows=rows, changes=changes)


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("mixed", "changes"), PRECISIONS)
@pytest.mark.parametrize("name", [n for n in NAMES if n != "solve_affine"])
@pytest.mark.parametrize(("dim", "rows"), [(16, 64), (64, 16), (64, 64), (128, 16), (128, 32)])
def test_every_plan_of_the_other_cells(architecture, mixed, changes, name, dim, rows):
    if (mixed and rows > 32) or (changes and name not in KEPT):
        pytest.skip("not planned")
    check(architecture, name, dim, "auto", mixed=mixed, rows=rows, changes=changes, gated=True, norm=1)


def test_limits_are_those_tested():
    assert SOLVERS["auto6"].history == HISTORY_LIMIT
    assert max(STATE_LIMIT[name] for name in NAMES) == 256
