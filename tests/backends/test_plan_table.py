"""Tables of measured plans: what is read, what is refused, whom an entry serves."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from attractor_kernels.backends import PlanTable, cuda, use_plan, use_plan_table
from attractor_kernels.backends.plan import H100, LEAST_ENTRIES, WARP_ENTRIES, tile_warps
from attractor_kernels.backends.plan_table import Kind, PlanEntry, bucket, choices_for, in_use
from attractor_kernels.backends.triton.planning import plan_call

AFFINE = Kind("triton", "solve_affine", "float32", "full", "auto", batch=4096, dim=64)
CUDA = AFFINE._replace(backend="cuda")
MLP = Kind("triton", "solve_mlp", "float32", "mixed", "picard", batch=100, dim=64, hidden=200)


def table_of(kind: Kind, **choices: int) -> PlanTable:
    return PlanTable(H100, (PlanEntry(kind, choices),))


def solve_plan(device=H100, **other):
    call = dict(batch=4096, dim=64, hidden=0, products=64 * 64, solver=2, history=5, dtype=torch.float32, mixed=False)
    name = other.pop("name", "solve_affine")
    return plan_call(name, device, **{**call, **other})


def contents(*entries: dict, **fields) -> dict:
    device = json.loads(json.dumps(asdict(H100)))
    return {"schema": 1, "device": device, "entries": list(entries), **fields}


def entry(kind: Kind = AFFINE, choices: object = None, **fields) -> dict:
    return {**kind._asdict(), "choices": {"rows": 32} if choices is None else choices, **fields}


def test_a_file_is_read(tmp_path):
    path = tmp_path / "table.json"
    measured = {"model": {"seconds": 1e-3}}
    found = contents(entry(), entry(CUDA, {"crew": True}, measured=measured), date="2026-11-29", commit=None)
    found["entries"][0].pop("hidden")
    path.write_text(json.dumps(found))
    table = PlanTable.read(path)
    assert table.device == H100 and table.about == {"date": "2026-11-29", "commit": None}
    assert table.entries == (PlanEntry(AFFINE, {"rows": 32}), PlanEntry(CUDA, {"crew": 1}))
    with use_plan_table(path) as used:
        assert used.table == table == in_use()
        assert solve_plan().rows == 32
    with use_plan_table(str(path)):
        assert choices_for("H100", CUDA) == ({"crew": 1}, "table")
    assert in_use() is None


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], r"the table must be an object, got \[\]"),
        ({}, "the table must have 'schema', got only nothing"),
        (contents(schema=2), "schema must be 1, got 2"),
        ({"schema": 1, "entries": []}, "the table must have 'device', got only 'schema', 'entries'"),
        (contents(note="x"), "the table must have no 'note', but schema, device, entries, date, versions, commit"),
        (contents() | {"entries": {}}, r"entries must be a list, got \{\}"),
        (contents() | {"device": "H100"}, "device must be an object, got 'H100'"),
        (contents() | {"device": {"name": "H100"}}, "device must have 'capability', got only 'name'"),
        (contents() | {"device": asdict(replace(H100, name=""))}, "device.name must be a text, got ''"),
        (contents() | {"device": asdict(H100) | {"capability": [9]}}, r"device.capability must be a list of two"),
        (contents() | {"device": asdict(H100) | {"capability": [9, "a"]}}, r"device.capability\[1\] must be an int"),
        (contents() | {"device": asdict(H100) | {"l2_bytes": 0}}, "device.l2_bytes must be at least 1, got 0"),
        (contents("solve_affine"), r"entries\[0\] must be an object, got 'solve_affine'"),
        (contents({"backend": "cuda"}), r"entries\[0\] must have 'operator', got only 'backend'"),
        (contents(entry(), entry(row=32)), r"entries\[1\] must have no 'row', but backend, operator, dtype"),
        (contents(entry(choices=[1])), r"entries\[0\].choices must be an object, got \[1\]"),
        (contents(entry(AFFINE._replace(backend="cpu"))), r"entries\[0\].backend must be one of 'triton', 'cuda'"),
        (contents(entry(AFFINE._replace(backend=1))), r"entries\[0\].backend must be one of .* of type int"),
        (
            contents(entry(AFFINE._replace(operator="anderson_step"))),
            r"operator must be one of 'solve_affine', .*, got",
        ),
        (contents(entry(AFFINE._replace(dtype="float64"))), r"dtype must be one of 'float32', 'bfloat16', 'float16'"),
        (
            contents(entry(CUDA._replace(dtype="bfloat16"))),
            r"dtype must be one of 'float32', 'float64', got 'bfloat16'",
        ),
        (contents(entry(AFFINE._replace(precision="tf32"))), r"precision must be one of 'full', 'mixed', got 'tf32'"),
        (contents(entry(AFFINE._replace(solver="broyden"))), r"solver must be one of 'picard', 'anderson', 'auto'"),
        (contents(entry(AFFINE._replace(batch=0))), r"entries\[0\].batch must be between 1 and \d+, got 0"),
        (contents(entry(AFFINE._replace(batch=1 << 60))), r"entries\[0\].batch must be between 1 and"),
        (contents(entry(AFFINE._replace(dim="64"))), r"entries\[0\].dim must be an int, got '64' of type str"),
        (contents(entry(AFFINE._replace(hidden=64))), r"entries\[0\].hidden must be between 0 and 0, got 64"),
        (contents(entry(MLP._replace(hidden=0))), r"entries\[0\].hidden must be between 1 and \d+, got 0"),
        (contents(entry(choices={"tile": 3})), r"entries\[0\].choices takes rows, warps, .*, got 'tile'"),
        (contents(entry(choices={"rows": 8})), r"entries\[0\].choices.rows must be between 16 and 64, got 8"),
        (contents(entry(choices={"rows": 48})), r"entries\[0\].choices.rows must be a power of two, got 48"),
        (contents(entry(choices={"stages": "3"})), r"entries\[0\].choices.stages must be an int, got '3'"),
        (contents(entry(CUDA, {"rows": 16})), r"entries\[0\].choices.rows must be 8 or 32 in float32, got 16"),
        (contents(entry(CUDA._replace(dtype="float64"), {"rows": 8})), "choices.rows must be 16 in float64, got 8"),
        (contents(entry(CUDA._replace(operator="solve_gated"), {"crew": 1})), "crew is for solve_affine in full prec"),
        (contents(entry(CUDA._replace(precision="mixed"), {"crew": 0})), "got it for solve_affine in mixed"),
        (contents(entry(), entry(CUDA, {}), entry(AFFINE._replace(dim=33))), r"entries\[2\] serves .* as entries\[0\]"),
    ],
)
def test_a_wrong_file_says_which_field_is_wrong(found, message, tmp_path):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=f"wrong.json: .*{message}"):
        use_plan_table(path)
    assert in_use() is None


@pytest.mark.parametrize(("text", "message"), [(b"{", "bad.json: is not JSON: "), (b"\xff", "bad.json: is not JSON: ")])
def test_what_is_no_json(text, message, tmp_path):
    (tmp_path / "bad.json").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        PlanTable.read(tmp_path / "bad.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        PlanTable.read(tmp_path / "none.json")
    with pytest.raises(
        TypeError, match=r"use_plan_table\(table\) must be a path, a PlanTable or None, got 5 of type int"
    ):
        use_plan_table(5)


MIXED = AFFINE._replace(precision="mixed")


@pytest.mark.parametrize(
    ("kind", "choices", "message"),
    [
        (
            CUDA._replace(precision="mixed"),
            {"mixed": 1},
            "choices.mixed changes a row's bits, .* may not depend on the",
        ),
        (CUDA, {"mixed": 0, "rows": 8}, "choices.mixed changes a row's bits"),
        (CUDA, {"wgmma": 0}, "choices.wgmma changes a row's bits"),
        (
            MIXED,
            {"rows": 64},
            "choices.rows must be 16 or 32 in float32, mixed: .* may not depend on the batch; got 64",
        ),
        (AFFINE._replace(dtype="bfloat16"), {"rows": 64}, "choices.rows must be 16 or 32 in bfloat16, full"),
        (AFFINE._replace(dim=16), {"rows": 16}, "choices.rows must be at least 32 with 4 warps and 16 entries"),
        (AFFINE, {"rows": 16, "warps": 16}, "choices.rows must be at least 32 with 16 warps and 64 entries"),
        (AFFINE, {"warps": 4}, "choices.warps must come with choices.rows"),
    ],
)
def test_what_would_make_a_rows_bits_depend_on_the_batch_is_refused(kind, choices, message):
    with pytest.raises(ValueError, match=message):
        PlanEntry(kind, choices)


def test_a_tile_whose_threads_would_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"choices\.registers must be at most 128 with 16 warps, got 255"):
        PlanEntry(AFFINE, {"rows": 64, "warps": 16})
    PlanEntry(AFFINE, {"rows": 64, "warps": 16, "registers": 128})


def test_the_model_would_not_be_refused():
    """What is refused is none of the plans whose bits are held against each other."""
    for dim in (1, 16, 20, 64, 128, 256):
        for batch in (1, 1000, 100_000):
            for mixed, kind in ((False, AFFINE), (True, MIXED)):
                plan = solve_plan(batch=batch, dim=dim, mixed=mixed)
                assert plan.rows * plan.columns >= max(LEAST_ENTRIES, plan.warps * WARP_ENTRIES)
                assert plan.warps == tile_warps(plan.rows, plan.columns)
                PlanEntry(kind._replace(batch=batch, dim=dim), {"rows": plan.rows, "warps": plan.warps})


def test_by_hand_before_the_table_before_the_model():
    model = solve_plan()
    assert (model.rows, model.stages) == (16, 3)
    with use_plan_table(table_of(AFFINE, rows=32, stages=2)):
        measured = solve_plan()
        assert (measured.rows, measured.stages) == (32, 2)
        assert measured.product_cycles == 2 * model.product_cycles
        with use_plan("solve_affine", stages=4):
            assert solve_plan() == replace(model, stages=4, shared_bytes=solve_plan().shared_bytes)
            assert choices_for("H100", AFFINE) == ({"stages": 4}, "hand")
        with use_plan("solve_affine", backend="cuda", rows=8), use_plan("solve_mlp", warps=2):
            assert solve_plan() == measured
        assert solve_plan(rows=16).rows == 16
    assert solve_plan() == model


def test_tables_nest_and_end():
    first, second = table_of(AFFINE, rows=32), table_of(AFFINE, stages=5)
    with use_plan_table(first):
        with use_plan_table(second):
            assert (solve_plan().rows, solve_plan().stages) == (16, 5)
        with use_plan_table(None):
            assert solve_plan().rows == 16
        assert solve_plan().rows == 32
    use_plan_table(second)
    try:
        assert solve_plan().stages == 5
    finally:
        use_plan_table(None)
    assert solve_plan().stages == 3


@pytest.mark.parametrize(
    "other",
    [
        dict(device=replace(H100, name="H100 PCIe")),
        dict(dtype=torch.bfloat16),
        dict(mixed=True),
        dict(solver=0),
        dict(name="solve_gated"),
        dict(batch=2048),
        dict(batch=4097),
        dict(dim=32),
        dict(dim=65),
    ],
    ids=str,
)
def test_other_calls_are_left_to_the_model(other):
    model = solve_plan(**other)
    with use_plan_table(table_of(AFFINE, stages=5)):
        assert solve_plan(**other) == model
        assert solve_plan(batch=2049, dim=33).stages == solve_plan(dim=64).stages == 5


def test_an_entry_without_choices_is_the_models():
    with use_plan_table(table_of(AFFINE)):
        assert choices_for("H100", AFFINE) == ({}, "model")


def test_hidden_units_have_buckets_too():
    sizes = dict(name="solve_mlp", batch=100, dim=64, solver=0, mixed=True)
    with use_plan_table(table_of(MLP, stages=5)):
        stages = [solve_plan(hidden=hidden, **sizes).stages for hidden in (128, 129, 256, 257)]
    assert stages == [3, 5, 5, 3]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 63, 64, 65, 4095, 4096, 4097, 1 << 40])
def test_buckets_do_not_overlap(n):
    low, high = bucket(n)
    assert low <= n <= high
    assert bucket(low) == bucket(high) == (low, high)
    assert bucket(high + 1)[0] == high + 1


@pytest.fixture
def library(monkeypatch):
    """A library that keeps what it is given, on a machine of three devices."""
    calls: list = []
    names = ["H100", "A100", "H100"]
    operators = SimpleNamespace(table=lambda devices, rows: calls.append((devices, rows)))
    monkeypatch.setattr(cuda, "library_obstacle", lambda: None)
    monkeypatch.setattr(torch.ops, "attractor_kernels_plans", operators, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])
    return calls


def test_the_library_gets_what_serves_its_devices(library):
    entries = (
        PlanEntry(AFFINE, {"rows": 32}),
        PlanEntry(CUDA._replace(dtype="float64", precision="mixed"), {"rows": 16, "blocks": 50}),
        PlanEntry(CUDA._replace(operator="solve_mlp_adjoint", solver="picard", batch=1, hidden=200), {"rows": 8}),
        PlanEntry(CUDA._replace(operator="solve_gated"), {}),
    )
    with use_plan_table(PlanTable(H100, entries)):
        pass
    (devices, rows), (_, none) = library
    assert devices == 0b101
    assert rows.dtype == torch.int64 and rows.tolist() == [
        [0, 8, 1, 2, 2049, 4096, 33, 64, 0, 0, 16, 50, -1],
        [2, 4, 0, 0, 1, 1, 33, 64, 129, 256, 8, 0, -1],
    ]
    assert none.shape == (0, 13)
    library.clear()
    use_plan_table(PlanTable(replace(H100, name="H900"), entries[1:2]))
    use_plan_table(None)
    assert [devices for devices, _ in library] == [0, 0]
