"""Plans for GPUs that are not here."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from attractor_kernels import backends
from attractor_kernels.backends import plan as plans
from attractor_kernels.bench.commands import app
from attractor_kernels.bench.gpu_plan import DEVICES, OPERATORS, Call, gpu_plan
from attractor_kernels.bench.machine import facts_module

needs_facts = pytest.mark.skipif(facts_module() is None, reason="the compiled part of the package is missing")


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_every_triton_kernel_has_a_plan(operator, device):
    found = gpu_plan(Call(operator, 4096, 128), device, "triton")
    assert found["warps"] in (4, 8) and found["programs"] >= 1
    assert found["floor_bytes" if operator == "anderson_step" else "floor_cycles"] > 0


def test_a_triton_plan_by_hand():
    """D = 256 on an H100: a tile of 16 rows multiplies 16 D^2 / 128 cycles and reads 4 D^2 / 48 bytes."""
    found = gpu_plan(Call("solve_affine", 4096, 256, history=5), plans.H100, "triton")
    assert (found["columns"], found["slots"], found["precision"]) == (256, 6, "ieee")
    assert found["product_cycles"] == found["rows"] * 256 * 256 // 128
    assert found["weight_cycles"] == round(4 * 256 * 256 / 48)
    assert found["floor_cycles"] == max(found["product_cycles"], found["weight_cycles"])
    assert gpu_plan(Call("solve_affine", 4096, 256, solver="picard"), plans.H100, "triton")["history"] == "none"
    mixed = Call("solve_affine", 4096, 256, precision="mixed")
    assert gpu_plan(mixed, plans.H100, "triton")["precision"] == "tf32x3"
    with backends.use_plan("solve_affine", mixed=True):
        assert gpu_plan(mixed, plans.H100, "triton")["precision"] == "bf16 changes"
    step = gpu_plan(Call("anderson_step", 1, 10**6), plans.H100, "triton")
    assert step["floor_bytes"] == 15 * 4 * 10**6


@needs_facts
def test_cuda_plans():
    with backends.use_plan("solve_affine", backend="cuda", crew=False):
        few, many = (gpu_plan(Call("solve_affine", batch, 256), plans.H100, "cuda") for batch in (100, 100_000))
    assert few["tile_rows"] < many["tile_rows"] and few["blocks"] < many["blocks"]
    assert many["blocks"] % plans.H100.multiprocessors == 0
    for found in (few, many):
        assert found["shared_bytes"] <= plans.H100.shared_bytes
    picard = gpu_plan(Call("solve_affine", 100, 256, solver="picard"), plans.H100, "cuda")
    assert picard["history"] == 0 and picard["scratch_bytes"] < few["scratch_bytes"]
    wide = gpu_plan(Call("solve_affine", 100_000, 256, dtype="float64"), plans.H100, "cuda")
    assert wide["weight_cycles"] == pytest.approx(2 * few["weight_cycles"], abs=1)


CUDA_OPERATORS = [name for name in OPERATORS if name != "anderson_step"]


@needs_facts
@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
@pytest.mark.parametrize("operator", CUDA_OPERATORS)
def test_every_cuda_kernel_has_a_plan(operator, device):
    found = gpu_plan(Call(operator, 100_000, 96, hidden=200), device, "cuda")
    assert found["kernel"].startswith("solve_kernel<") and found["tile_rows"] == 32
    assert found["shared_bytes"] <= device.shared_bytes
    products = {"solve_affine": 96 * 96, "solve_mlp": 2 * 96 * 200, "solve_gated": 2 * 96 * 96}
    products = products[operator.removesuffix("_adjoint").removesuffix("_tangent")]
    assert found["product_cycles"] == round(32 * products / device.float32_products)
    small = gpu_plan(Call(operator, 100_000, 96, hidden=20), device, "cuda")
    assert (small["scratch_bytes"] < found["scratch_bytes"]) == (operator.startswith("solve_mlp"))


@needs_facts
def test_cuda_plans_of_a_precision():
    call = Call("solve_affine", 4096, 256, precision="mixed")
    found = gpu_plan(call, plans.H100, "cuda")
    assert found["mixed"] and found["product_cycles"] == 32 * 256 * 256 // 2048
    assert not gpu_plan(Call("solve_affine", 4096, 256), plans.H100, "cuda")["mixed"]
    assert not gpu_plan(Call("solve_affine", 4096, 32, precision="mixed"), plans.H100, "cuda")["mixed"]
    with backends.use_plan("solve_affine", backend="cuda", mixed=False):
        assert not gpu_plan(call, plans.H100, "cuda")["mixed"]


@needs_facts
def test_few_rows_of_a_large_state_go_to_a_crew():
    call = Call("solve_affine", 1, 2048)
    found = gpu_plan(call, plans.H100, "cuda")
    assert found["kernel"] == "crew_kernel, the whole grid" and found["members"] * found["outputs"] >= 2048
    assert found["weight_cycles"] == 0 and found["placement"] == "shared memory"
    assert "a cluster" in gpu_plan(Call("solve_affine", 8, 256), plans.H100, "cuda")["kernel"]
    assert gpu_plan(Call("solve_affine", 1, 2048, precision="mixed"), plans.H100, "cuda")["kernel"][:5] == "solve"
    with backends.use_plan("solve_affine", backend="cuda", crew=False):
        assert gpu_plan(call, plans.H100, "cuda")["kernel"][:5] == "solve"
    with backends.use_plan("solve_affine", backend="cuda", crew=True):
        assert gpu_plan(Call("solve_affine", 4096, 256), plans.H100, "cuda")["kernel"][:4] == "crew"


@needs_facts
def test_a_cuda_plan_chosen_by_hand():
    call = Call("solve_gated", 4096, 96)
    model = gpu_plan(call, plans.H100, "cuda")
    with backends.use_plan("solve_gated", backend="cuda", rows=8, blocks=50):
        found = gpu_plan(call, plans.H100, "cuda")
        assert (model["tile_rows"], found["tile_rows"], found["blocks"]) == (32, 8, 50)
        assert found["scratch_bytes"] < model["scratch_bytes"]
    with (
        backends.use_plan("solve_gated", backend="cuda", rows=16),
        pytest.raises(ValueError, match="a tile has 8 or 32 rows"),
    ):
        gpu_plan(call, plans.H100, "cuda")
    assert gpu_plan(call, plans.H100, "cuda") == model


@needs_facts
@pytest.mark.parametrize(("entries", "team", "split"), [(500, "warp", False), (5000, "block", True)])
def test_cuda_plans_of_a_step(entries, team, split):
    found = gpu_plan(Call("anderson_step", 1, entries), plans.A100, "cuda")
    assert (found["team"], found["split"]) == (team, split)
    assert found["floor_bytes"] == 15 * 4 * entries
    many = gpu_plan(Call("anderson_step", 1000, entries), plans.A100, "cuda")
    assert many["split"] is False and many["teams"] >= 1000


@pytest.mark.parametrize(
    ("call", "backend", "message"),
    [
        (Call("solve_affine", 1, 1024), "triton", "the state has 1024 entries, not 1 to 256"),
        (Call("solve_affine", 1, 64, dtype="float64"), "triton", "the state is torch.float64"),
        (Call("solve_affine", 1, 64, history=9), "triton", "the history is 9, not at most 6"),
    ],
)
def test_no_plan_says_why(call, backend, message):
    if backend == "cuda" and facts_module() is None:
        pytest.skip("the compiled part of the package is missing")
    with pytest.raises(ValueError, match=message):
        gpu_plan(call, plans.H100, backend)


def invoke(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, ["info", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_info_prints_a_plan():
    options = ("--plan", "solve_mlp,64x32", "--shape", "512x96", "--hidden", "200", "--device", "B200")
    found = json.loads(invoke(*options, "--json").stdout)["plans"]
    assert set(found) == {"64x32", "solve_mlp 512x96 on B200, triton"}
    plan = found["solve_mlp 512x96 on B200, triton"]
    assert plan["device"] == "B200" and plan["product_cycles"] == round(plan["rows"] * 2 * 96 * 200 / 128)
    text = invoke(*options).stdout
    assert "plan solve_mlp 512x96 on B200, triton" in text and "floor_cycles" in text


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [("--device", "H900", "H100"), ("--backend", "vulkan", "triton"), ("--dtype", "int8", "bfloat16")],
)
def test_info_names_what_there_is(option, value, named):
    result = invoke("--plan", "solve_affine", option, value, code=2)
    assert named in result.output


def test_info_says_why_there_is_no_plan():
    assert "1 to 256" in invoke("--plan", "solve_affine", "--shape", "8x1024", code=2).output


def test_a_plan_chosen_by_hand_is_shown():
    with backends.use_plan("solve_affine", warps=2, stages=2):
        found = gpu_plan(Call("solve_affine", 4096, 64), plans.H100, "triton")
    assert (found["warps"], found["stages"]) == (2, 2)
