"""Plans for GPUs that are not here."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from attractor_kernels import backends
from attractor_kernels.backends import plan as plans
from attractor_kernels.backends.override import CUDA_OPERATORS
from attractor_kernels.backends.plan_table import PlanEntry, PlanTable, choices_for
from attractor_kernels.bench.commands import app
from attractor_kernels.bench.gpu_plan import DEVICES, Call, gpu_plan
from attractor_kernels.bench.machine import facts_module

needs_facts = pytest.mark.skipif(facts_module() is None, reason="the compiled part of the package is missing")


@pytest.mark.parametrize("operator", [*CUDA_OPERATORS, "anderson_step"])
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
    found = gpu_plan(call, plans.B200, "cuda")
    assert found["mixed"] and found["product_cycles"] == 32 * 256 * 256 // 2048
    assert (found["products"], found["weight_cycles"]) == ("mma.sync", round(2 * 256 * 256 / 48))
    assert not gpu_plan(Call("solve_affine", 4096, 256), plans.H100, "cuda")["mixed"]
    assert not gpu_plan(Call("solve_affine", 4096, 32, precision="mixed"), plans.H100, "cuda")["mixed"]
    with backends.use_plan("solve_affine", backend="cuda", mixed=False):
        assert not gpu_plan(call, plans.H100, "cuda")["mixed"]


@needs_facts
def test_weights_that_fit_in_shared_memory_are_multiplied_by_warpgroups():
    call = Call("solve_affine", 100_000, 256, precision="mixed")
    found = gpu_plan(call, plans.H100, "cuda")
    assert (found["products"], found["teams"], found["warps"], found["weight_cycles"]) == ("wgmma", 2, 8, 0)
    assert 2 * 256 * 256 < found["shared_bytes"] <= plans.H100.shared_bytes
    few = gpu_plan(Call("solve_affine", 40, 256, precision="mixed"), plans.H100, "cuda")
    assert (few["products"], few["teams"], few["tile_rows"]) == ("wgmma", 1, 8)
    for device, dim in ((plans.H100, 320), (plans.A100, 256), (plans.B200, 256)):
        other = gpu_plan(Call("solve_affine", 100_000, dim, precision="mixed"), device, "cuda")
        assert (other["products"], other["teams"]) == ("mma.sync", 1)
    with backends.use_plan("solve_affine", backend="cuda", wgmma=False):
        assert gpu_plan(call, plans.H100, "cuda")["products"] == "mma.sync"


@needs_facts
@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
@pytest.mark.parametrize("operator", CUDA_OPERATORS)
def test_every_cuda_kernel_has_mixed_products(operator, device):
    """From sizes on where they pay, which the batch does not decide."""
    for batch in (1, 100_000):
        full, mixed, small = (
            gpu_plan(Call(operator, batch, dim, hidden=131, precision=precision), device, "cuda")
            for dim, precision in ((101, "full"), (101, "mixed"), (9, "mixed"))
        )
        assert (full["mixed"], mixed["mixed"], small["mixed"]) == (False, True, False)
    assert mixed["shared_bytes"] <= device.shared_bytes and mixed["tile_rows"] == 32
    # In bfloat16, several times faster than in float32.
    assert mixed["product_cycles"] * 4 < full["product_cycles"]
    resident = mixed["products"] == "wgmma"
    assert resident == (device is plans.H100)
    assert mixed["weight_cycles"] == (0 if resident else pytest.approx(full["weight_cycles"] / 2, abs=1))


@needs_facts
@pytest.mark.parametrize(
    ("operator", "units", "first", "by_groups"),
    [("solve_affine", 0, 83, 75), ("solve_gated", 0, 62, 56), ("solve_mlp", 1, 83, 75), ("solve_mlp", 4, 52, 46)],
)
def test_where_mixed_products_begin(operator, units, first, by_groups):
    """As csrc/README.md has it; units: hidden ones, for each entry of the state."""
    for device, begin in ((plans.B200, first), (plans.H100, by_groups)):
        for dim in (begin - 1, begin):
            call = Call(operator, 4096, dim, hidden=units * dim, precision="mixed")
            assert gpu_plan(call, device, "cuda")["mixed"] == (dim == begin)


@needs_facts
@pytest.mark.parametrize(
    ("operator", "units", "most"),
    [("solve_affine", 0, 272), ("solve_gated_adjoint", 0, 192), ("solve_mlp", 1, 192), ("solve_mlp_tangent", 4, 92)],
)
def test_which_weights_stay_in_shared_memory(operator, units, most):
    """As csrc/README.md has it: all of a cell's, beside two tiles."""
    for dim in (most, most + 1):
        call = Call(operator, 100_000, dim, hidden=units * dim, solver="anderson", precision="mixed")
        assert gpu_plan(call, plans.H100, "cuda")["products"] == ("wgmma" if dim == most else "mma.sync")


@needs_facts
def test_how_large_mixed_products_are():
    """As csrc/README.md has it: the tile of changes is as wide as the largest product's inputs."""

    def plan(operator, inputs):
        dim = inputs // 2 if operator == "solve_gated_adjoint" else 128 if operator == "solve_mlp" else inputs
        call = Call(operator, 100_000, dim, hidden=inputs, solver="anderson", precision="mixed")
        found = gpu_plan(call, plans.H100, "cuda")
        return found["mixed"], found["tile_rows"], found["blocks"] // plans.H100.multiprocessors

    for operator in ("solve_affine", "solve_mlp", "solve_gated", "solve_gated_adjoint"):
        assert plan(operator, 1664) == (True, 32, 2)
        assert plan(operator, 1666) == (True, 32, 1)
        assert plan(operator, 3456) == (True, 32, 1)
        assert plan(operator, 3458)[:2] == (True, 8)
        assert plan(operator, 14144)[:2] == (True, 8)
        assert not plan(operator, 14146)[0]


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


STEP_CHOICES = ("warp", "blocks", "split", "kept", "solvers")


@needs_facts
@pytest.mark.parametrize(
    ("entries", "choices", "changed"),
    [
        (500, {"warp": 0}, {"team": "block", "teams": 7, "blocks": 7, "wide_access": True}),
        (500, {"kept": 0}, {"kept_chunks": 0}),
        (5000, {"warp": 1}, {"team": "warp", "split": False, "teams": 8, "blocks": 2, "wide_access": False}),
        (5000, {"blocks": 4}, {"teams": 4, "blocks": 4}),
        (5000, {"split": 0}, {"split": False, "teams": 7, "blocks": 7}),
        (5000, {"split": 0, "blocks": 3, "kept": 1}, {"split": False, "teams": 3, "blocks": 3, "kept_chunks": 1}),
        (5000, {"kept": 0}, {"kept_chunks": 0}),
        (5000, {"solvers": 5}, {}),  # there is one group, and so one system
        (10**7, {"kept": 9}, {"kept_chunks": 9, "teams": 132, "blocks": 132}),  # one a multiprocessor finds the room
    ],
    ids=str,
)
def test_a_cuda_step_chosen_by_hand(entries, choices, changed):
    call = Call("anderson_step", 7, entries)
    model = gpu_plan(call, plans.H100, "cuda")
    assert model["chosen_by"] == dict.fromkeys(STEP_CHOICES, "model")
    with backends.use_plan("anderson_step", backend="cuda", **choices):
        found = gpu_plan(call, plans.H100, "cuda")
    assert found["chosen_by"] == model["chosen_by"] | dict.fromkeys(choices, "hand")
    assert {name: found[name] for name in changed} == changed
    same = [name for name in found if name not in (*changed, "chosen_by", "shared_bytes", "kept_chunks")]
    assert {name: found[name] for name in same} == {name: model[name] for name in same}
    # As step_space.h and shared memory have it: 1 KiB of a block's goes to the system.
    kept = found["kept_chunks"] * found["chunk"] * 4
    assert kept <= found["shared_bytes"] // (4 if found["team"] == "warp" else 1)
    if found["split"]:
        residents = -(-found["blocks"] // plans.H100.multiprocessors)
        assert residents * (found["shared_bytes"] + 1024) <= plans.H100.shared_bytes + 1024
    assert gpu_plan(call, plans.H100, "cuda") == model


@needs_facts
@pytest.mark.parametrize(
    ("entries", "choices", "message"),
    [
        (500, {"split": 1}, "cannot share a problem that a warp takes"),
        (5000, {"split": 1, "warp": 1}, "cannot share a problem that a warp takes"),
        (4096, {"split": 1}, "cannot share a problem of one chunk"),
        (10**7, {"blocks": 397}, "on the device together, three on a multiprocessor"),
        (10**7, {"kept": 20}, "more shared memory than the device has"),
        (10**7, {"kept": 9, "blocks": 133}, "more shared memory than the device has"),
        (10**7, {"split": 0, "kept": 15}, "more shared memory than the device has"),
        (10**7, {"warp": 1, "kept": 4}, "more shared memory than the device has"),
    ],
    ids=str,
)
def test_a_cuda_step_that_cannot_be_had(entries, choices, message):
    with (
        backends.use_plan("anderson_step", backend="cuda", **choices),
        pytest.raises(ValueError, match=message),
    ):
        gpu_plan(Call("anderson_step", 7, entries), plans.H100, "cuda")


@needs_facts
def test_small_systems_a_team_solves_at_once():
    """Of 100 mixing groups, by one block; a warp has 32 threads."""
    facts = facts_module()
    shape = (300, 100, 64, 6, 64, "float32", plans.H100.multiprocessors, plans.H100.shared_bytes)
    few, many = (facts.cuda_plan_step(*shape, kept=0, solvers=solvers) for solvers in (4, 128))
    assert (few["solvers"], many["solvers"]) == (4, 100)  # there are no more
    one = 2 * 25 + 5 * 5 + 3  # doubles: a matrix and its factor, five vectors, an order of ints
    assert many["shared_bytes"] - few["shared_bytes"] == pytest.approx(96 * one * 8, abs=64)
    with pytest.raises(ValueError, match="than it has threads"):
        facts.cuda_plan_step(*shape, warp=1, solvers=33)
    assert facts.cuda_plan_step(*shape, warp=1, solvers=32)["team"] == "warp"


@needs_facts
def test_an_empty_batch_asks_for_nothing():
    facts = facts_module()
    for choices in ({}, {"split": 1}, {"warp": 0}, {"kept": 4096}):
        assert facts.cuda_plan_step(0, 3, 5000, 6, 5080, "float32", 132, 232448, **choices)["teams"] == 0
    assert facts.cuda_plan_residual(0, 5000, "float32", warp=1)["blocks"] == 0


@needs_facts
def test_a_residual_chosen_by_hand():
    call = Call("residual_norm", 300, 4096)
    model = gpu_plan(call, plans.H100, "cuda")
    assert (model["team"], model["blocks"], model["floor_bytes"]) == ("block", 300, 2 * 4 * 300 * 4096)
    with backends.use_plan("residual_norm", backend="cuda", warp=True, blocks=30):
        found = gpu_plan(call, plans.H100, "cuda")
        assert (found["team"], found["blocks"], found["wide_access"]) == ("warp", 30, False)
        assert found["chosen_by"] == {"warp": "hand", "blocks": "hand"}
        with pytest.raises(ValueError, match="a warp takes problems of one chunk only"):
            gpu_plan(replace(call, dim=4097), plans.H100, "cuda")
    few = gpu_plan(replace(call, dim=512), plans.H100, "cuda")
    assert (few["team"], few["blocks"], gpu_plan(replace(call, dim=4097), plans.H100, "cuda")["blocks"]) == (
        "warp",
        75,
        600,
    )
    assert gpu_plan(call, plans.H100, "cuda") == model


@pytest.mark.parametrize(
    ("call", "backend", "message"),
    [
        (Call("solve_affine", 1, 1024), "triton", "the state has 1024 entries, not 1 to 256"),
        (Call("solve_affine", 1, 64, dtype="float64"), "triton", "the state is torch.float64"),
        (Call("solve_affine", 1, 64, history=9), "triton", "the history is 9, not at most 6"),
        (Call("residual_norm", 1, 64), "triton", "there is no Triton kernel for residual_norm"),
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


@needs_facts
def test_info_prints_a_step_chosen_by_hand():
    options = ("--plan", "anderson_step,residual_norm", "--backend", "cuda", "--shape", "2x9000")
    with backends.use_plan("anderson_step", backend="cuda", split=False):
        text = " ".join(invoke(*options).stdout.split())
        assert "split: hand, kept: model" in text and "residual_norm 2x9000 on H100, cuda" in text
        found = json.loads(invoke(*options, "--json").stdout)["plans"]
    assert found["anderson_step 2x9000 on H100, cuda"]["split"] is False
    with backends.use_plan("anderson_step", backend="cuda", split=True):
        message = invoke(*options[:-1], "2x300", code=2).output
    assert "cannot share" in message


def test_a_plan_chosen_by_hand_is_shown():
    with backends.use_plan("solve_affine", warps=2, stages=2):
        found = gpu_plan(Call("solve_affine", 4096, 64), plans.H100, "triton")
    assert (found["warps"], found["stages"]) == (2, 2)


def table_of(call: Call, backend: str, **choices: int) -> PlanTable:
    return PlanTable(plans.H100, (PlanEntry(call.kind(backend), choices),))


@needs_facts
def test_a_measured_cuda_plan():
    call = Call("solve_gated", 4096, 96)
    model = gpu_plan(call, plans.H100, "cuda")
    assert model["chosen_by"] == dict.fromkeys(("rows", "blocks", "mixed", "crew", "wgmma"), "model")
    with backends.use_plan_table(table_of(call, "cuda", rows=8, blocks=50)):
        found = gpu_plan(call, plans.H100, "cuda")
        assert (model["tile_rows"], found["tile_rows"], found["blocks"]) == (32, 8, 50)
        assert found["chosen_by"] == model["chosen_by"] | {"rows": "table", "blocks": "table"}
        assert gpu_plan(call, replace(plans.H100, name="H200"), "cuda")["tile_rows"] == 32
        with backends.use_plan("solve_gated", backend="cuda", blocks=20):
            found = gpu_plan(call, plans.H100, "cuda")
            assert (found["tile_rows"], found["blocks"], found["chosen_by"]["blocks"]) == (32, 20, "hand")
            assert found["chosen_by"]["rows"] == "model"
    assert gpu_plan(call, plans.H100, "cuda") == model


# A kind that is in no other's bucket, and what differs from it in one thing only.
ENTRY = Call("solve_mlp", 64, 96, hidden=200, solver="anderson")


@needs_facts
@pytest.mark.parametrize(
    "call",
    [
        *(replace(ENTRY, batch=batch) for batch in (1, 32, 33, 64, 65)),
        *(replace(ENTRY, dim=dim) for dim in (64, 65, 128, 129)),
        *(replace(ENTRY, hidden=hidden) for hidden in (128, 129, 256, 257)),
        *(replace(ENTRY, solver=solver) for solver in ("picard", "auto")),
        *(replace(ENTRY, dtype=dtype) for dtype in ("float16", "bfloat16", "float64")),
        replace(ENTRY, precision="mixed"),
        replace(ENTRY, history=3),
        replace(ENTRY, operator="solve_mlp_adjoint"),
    ],
    ids=str,
)
def test_both_planners_look_up_alike(call):
    """The library finds what `choices_for` finds."""
    with backends.use_plan_table(table_of(ENTRY, "cuda", blocks=1)):
        served = choices_for("H100", call.kind("cuda"))[1] == "table"
        found = gpu_plan(call, plans.H100, "cuda")
    assert (found["chosen_by"]["blocks"] == "table") == served
    assert (found["blocks"] == 1) == (served or call.batch == 1)


@needs_facts
def test_a_table_chooses_between_a_crew_and_blocks():
    for call, crew in ((Call("solve_affine", 1, 2048), 0), (Call("solve_affine", 4096, 256), 1)):
        model = gpu_plan(call, plans.H100, "cuda")
        with backends.use_plan_table(table_of(call, "cuda", crew=crew)):
            found = gpu_plan(call, plans.H100, "cuda")
        assert ("members" in model, "members" in found) == (not crew, bool(crew))


@needs_facts
def test_what_cannot_be_had_is_an_error_by_hand_only():
    """A wide tile and a long history need more shared memory than this device has."""
    device = replace(plans.H100, shared_bytes=101376)
    call = Call("solve_gated", 100_000, 96, solver="anderson", history=32)
    model = gpu_plan(call, device, "cuda")
    table = PlanTable(device, (PlanEntry(call.kind("cuda"), {"rows": 32}),))
    with backends.use_plan_table(table):
        assert gpu_plan(call, device, "cuda") == model
        assert gpu_plan(replace(call, history=5), device, "cuda")["chosen_by"]["rows"] == "table"
        with (
            backends.use_plan("solve_gated", backend="cuda", rows=32),
            pytest.raises(ValueError, match="more shared memory"),
        ):
            gpu_plan(call, device, "cuda")


def test_a_step_has_no_table():
    call = Call("anderson_step", 10, 100)
    assert gpu_plan(call, plans.H100, "triton")["chosen_by"] == {"warps": "model", "registers": "model"}
    with backends.use_plan("anderson_step", warps=2):
        assert gpu_plan(call, plans.H100, "triton")["chosen_by"] == {"warps": "hand", "registers": "model"}


@pytest.fixture
def table_file(tmp_path):
    path = tmp_path / "table.json"
    device = {**asdict(plans.H100), "name": "NVIDIA H100, with a comma"}
    entry = {**Call("solve_affine", 4096, 256).kind("triton")._asdict(), "choices": {"stages": 2}}
    path.write_text(json.dumps({"schema": 1, "device": device, "entries": [entry], "date": "2026-11-29"}))
    return path


def test_info_prints_a_measured_plan(table_file):
    options = ("--plan", "solve_affine", "--table", str(table_file))
    found = json.loads(invoke(*options, "--json").stdout)
    plan = found["plans"]["solve_affine 4096x256 on NVIDIA H100, with a comma, triton"]
    assert plan["stages"] == 2 and plan["chosen_by"]["stages"] == "table"
    assert plan["chosen_by"]["rows"] == plan["chosen_by"]["warps"] == "model"
    assert found["table"]["entries"] == found["table"]["with_choices"] == 1
    text = invoke(*options).stdout
    assert "rows: model, warps: model, stages: table" in text and "2026-11-29" in text
    with backends.use_plan("solve_affine", rows=16):
        assert "rows: hand, warps: model, stages: model" in invoke(*options).stdout
    elsewhere = json.loads(invoke(*options, "--device", "H100", "--json").stdout)["plans"]
    assert elsewhere["solve_affine 4096x256 on H100, triton"]["stages"] == 3


def test_info_says_what_is_wrong_with_a_table(table_file):
    options = ("--plan", "solve_affine", "--table", str(table_file))
    table_file.write_text(table_file.read_text().replace('"schema": 1', '"schema": 7'))
    assert "schema must be 1, got 7" in invoke(*options, code=2).output
    assert "does not exist" in invoke("--table", "nowhere.json", code=2).output
