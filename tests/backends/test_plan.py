"""What a plan promises, for devices that need not be there."""

import pytest

from attractor_kernels.backends import plan, use_plan

DEVICES = (plan.A100, plan.H100, plan.B200)


def make(device, batch, dim, *, hidden=0, slots=6, precision="ieee"):
    products = 2 * dim * hidden if hidden else dim * dim
    return plan.plan_solve(
        "solve",
        device,
        batch=batch,
        dim=dim,
        hidden=hidden,
        products=products,
        slots=slots,
        vectors=3 + 2 * slots,
        control=100,
        precision=precision,
    )


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("dim", [1, 16, 33, 128, 256])
@pytest.mark.parametrize("batch", [1, 1000, 100000])
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def test_a_plan_fits(device, dim, batch, precision):
    p = make(device, batch, dim, precision=precision)
    assert p.columns >= max(dim, 16) and p.columns % p.inputs == 0
    assert plan.LEAST_ENTRIES <= p.rows * p.columns <= plan.TILE_ENTRIES
    assert 1 <= p.programs <= -(-batch // p.rows)
    assert p.scratch_bytes <= device.l2_bytes * 3 // 4
    assert p.shared_bytes <= device.shared_bytes
    assert p.rows <= 32 or precision == "ieee"


def test_slices_do_not_follow_the_batch():
    """They decide the order of additions, so a row's bits."""
    plans = [make(plan.H100, batch, 64, hidden=200) for batch in (1, 100, 10000, 1000000)]
    assert len({(p.columns, p.inputs, p.hidden, p.precision) for p in plans}) == 1
    assert len({p.rows for p in plans}) > 1


def test_rows_that_are_asked_for():
    p = plan.plan_solve(
        "solve",
        plan.H100,
        batch=10,
        dim=16,
        hidden=0,
        products=256,
        slots=0,
        vectors=3,
        control=30,
        precision="ieee",
        rows=64,
    )
    assert p.rows == 64 and p.history == "none"


L4 = plan.DeviceFacts("L4", (8, 9), 58, 48 << 20, 99 << 10)


def pays(device, dim):
    return plan.changes_pay("solve_affine", device, dim, dim * dim, 2)


def test_changes_pay_by_the_size_of_the_state():
    """Not on devices whose TF32 products are fast; on the others for large states."""
    assert not any(pays(device, dim) for device in DEVICES for dim in (16, 64, 256))
    found = [pays(L4, dim) for dim in range(16, 257)]
    assert not found[0] and found[-1] and found == sorted(found)
    with use_plan("solve_affine", mixed=True):
        assert pays(plan.H100, 16)
    with use_plan("solve_affine", mixed=False):
        assert not pays(L4, 256)


def test_a_plan_with_changes():
    """D = 256: a tile of 16 rows multiplies 16 D^2 / 512 cycles and reads 2 D^2 / 48 bytes."""
    sizes = dict(batch=100, dim=256, hidden=0, products=256 * 256, slots=6, control=109, precision="tf32x3")
    full = plan.plan_solve("solve_affine", L4, **sizes, vectors=15)
    p = plan.plan_solve("solve_affine", L4, **sizes, vectors=17, kept=2)
    assert (full.precision, full.dots, p.precision, p.dots) == ("tf32x3", "tf32x3", "bf16 changes", "tf32x3")
    assert (p.product_cycles, p.weight_cycles) == (16 * 256 * 256 // 512, round(2 * 256 * 256 / 48))
    assert p.scratch_bytes == full.scratch_bytes // (15 * 1024 + 872) * (17 * 1024 + 872)
    assert p.rows <= 32


def test_a_plan_prints_a_fact_a_line():
    text = str(make(plan.H100, 1000, 64))
    assert "rows  16" in text and "floor_cycles  512" in text


@pytest.mark.parametrize(
    ("shape", "launches", "tiles"),
    [((9, 1, 4096), 1, 1), ((9, 1, 4097), 2, 3), ((9, 7, 10), 2, 1), ((1, 1, 10**8), 2, 48829)],
)
def test_steps(shape, launches, tiles):
    problems, groups, entries = shape
    p = plan.plan_step(problems=problems, groups=groups, entries=entries, slots=6, item_bytes=2)
    assert (p.launches, p.tiles) == (launches, tiles)
    assert p.programs * p.groups * p.columns >= problems * groups * entries
    assert p.floor_bytes == 15 * 2 * problems * groups * entries
