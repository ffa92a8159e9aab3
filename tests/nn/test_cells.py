"""The cells as modules: the map they state, what they refuse, how they start."""

import copy

import pytest
import torch

import attractor_kernels as ak

F = torch.nn.functional


def test_affine_map():
    cell = ak.nn.AffineCell(4, 3, leak=0.3, activation="softplus").double()
    z, x = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    u = x @ cell.input_weight.T + cell.bias
    torch.testing.assert_close(cell.inject(x), u)
    torch.testing.assert_close(cell(z, x), cell.leak * z + F.softplus(z @ cell.weight.T + u, threshold=100))
    assert torch.equal(cell.bind(x)(z), cell(z, x)) and torch.equal(cell.bind_injection(cell.inject(x))(z), cell(z, x))


def test_partial_relu_map():
    cell = ak.nn.AffineCell(4, 3, activation=ak.nn.partial_relu(1), bias=False)
    z, x = torch.randn(5, 4), torch.randn(5, 3)
    a = z @ cell.weight.T + x @ cell.input_weight.T
    torch.testing.assert_close(cell(z, x), torch.cat([a[:, :3], a[:, 3:].relu()], 1))
    assert cell.bias is None


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_mlp_map(norm, activation):
    cell = ak.nn.MLPCell(4, 3, hidden_dim=6, activation=activation, norm=norm, skip=0.5, leak=0.1, norm_eps=1e-3)
    z, x = torch.randn(5, 4), torch.randn(5, 3)
    y = z + x @ cell.input_weight.T
    a = F.linear(y, cell.w1, cell.b1)
    h = F.silu(a[:, :6]) * a[:, 6:] if activation == "swiglu" else a.relu()
    o = 0.5 * y + F.linear(h, cell.w2, cell.b2)
    if norm == "layer":
        o = F.layer_norm(o, (4,), eps=1e-3)
    if norm == "rms":
        o = F.rms_norm(o, (4,), eps=1e-3)
    torch.testing.assert_close(cell(z, x), cell.leak * z + o)


def test_gated_map():
    cell = ak.nn.GatedCell(4, 3)
    z, x = torch.randn(5, 4), torch.randn(5, 3)
    gate, candidate = (z @ cell.weight.T + cell.inject(x)).chunk(2, -1)
    s = gate.sigmoid()
    torch.testing.assert_close(cell(z, x), (1 - s) * z + s * candidate.tanh())


CELLS = {
    "affine": lambda **k: ak.nn.AffineCell(8, 3, **k),
    "affine leaky": lambda **k: ak.nn.AffineCell(8, 3, leak=torch.linspace(-0.5, 0.9, 8), activation="gelu", **k),
    "mlp": lambda **k: ak.nn.MLPCell(8, 3, activation="silu", leak=0.2, **k),
    "gated": lambda **k: ak.nn.GatedCell(8, 3, **k),
}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fresh_cells_contract(kind, dtype):
    cell = CELLS[kind](dtype=dtype)
    assert all(p.dtype == dtype for p in cell.parameters())
    x = torch.randn(6, 3, dtype=dtype)
    z, info = ak.fixed_point(cell.bind(x), torch.zeros(6, 8, dtype=dtype), solver=ak.Picard(), max_steps=400)
    assert z.dtype == dtype and info.converged.all()


@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_ordinary_modules(kind):
    cell = CELLS[kind]()
    other = CELLS[kind]()
    z, x = torch.randn(5, 8), torch.randn(5, 3)
    assert not torch.equal(cell(z, x), other(z, x))
    other.load_state_dict(cell.state_dict())
    assert torch.equal(cell(z, x), other(z, x))
    assert torch.equal(copy.deepcopy(cell)(z, x), cell(z, x))
    before = cell(z, x)
    cell.reset_parameters()
    assert not torch.equal(cell(z, x), before)
    assert cell.initial_state(torch.zeros(2, 5, 3)).shape == (2, 5, 8)
    assert type(cell).__name__ in repr(cell)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ak.nn.AffineCell(0, 3), ValueError, "state_dim must be at least 1, got 0"),
        (lambda: ak.nn.AffineCell(4, 3.0), TypeError, "input_dim must be an int, got 3.0"),
        (lambda: ak.nn.AffineCell(4, 3, bias=1), TypeError, "bias must be a bool, got 1"),
        (lambda: ak.nn.AffineCell(4, 3, activation="swiglu"), ValueError, "activation must be one of .* got 'swiglu'"),
        (lambda: ak.nn.AffineCell(4, 3, activation="partial_relu"), ValueError, r"partial_relu\(pieces\)"),
        (lambda: ak.nn.AffineCell(4, 3, activation=ak.nn.partial_relu(5)), ValueError, "between 0 and 4, got 5"),
        (lambda: ak.nn.AffineCell(4, 3, activation=torch.tanh), TypeError, "activation must be one of"),
        (lambda: ak.nn.partial_relu(-1), ValueError, "pieces must be at least 0, got -1"),
        (lambda: ak.nn.AffineCell(4, 3, leak=torch.zeros(3)), ValueError, r"leak must have shape \[4\], got \[3\]"),
        (lambda: ak.nn.AffineCell(4, 3, leak="big"), TypeError, "leak must be a float, got 'big'"),
        (lambda: ak.nn.AffineCell(4, 3, hidden_dim=5), TypeError, "hidden_dim"),
        (lambda: ak.nn.AffineCell(4, 3, "tanh"), TypeError, "positional"),
        (lambda: ak.nn.MLPCell(4, 3, hidden_dim=0), ValueError, "hidden_dim must be at least 1, got 0"),
        (lambda: ak.nn.MLPCell(4, 3, norm="batch"), ValueError, "norm must be one of 'none', 'layer', 'rms'"),
        (lambda: ak.nn.MLPCell(4, 3, skip=float("inf")), ValueError, "skip must be finite"),
        (lambda: ak.nn.MLPCell(4, 3, norm_eps=-1.0), ValueError, "norm_eps must be at least 0"),
        (lambda: ak.nn.MLPCell(4, 3, activation=ak.nn.partial_relu(1)), TypeError, "activation must be one of"),
    ],
)
def test_wrong_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_wrong_inputs():
    cell = ak.nn.GatedCell(4, 3)
    with pytest.raises(TypeError, match="x must be a Tensor, got list"):
        cell.bind([1.0])
    with pytest.raises(ValueError, match=r"x must have shape \[\*batch, 3\], got \[5, 4\]"):
        cell.bind(torch.zeros(5, 4))
    with pytest.raises(TypeError, match=r"x must have the cell's dtype torch.float32, got torch.float64"):
        cell.bind(torch.zeros(5, 3).double())
    with pytest.raises(ValueError, match="x must be on the cell's device cpu, got meta"):
        cell.bind(torch.zeros(5, 3, device="meta"))
    with pytest.raises(ValueError, match=r"u must have shape \[\*batch, 8\], got \[5, 4\]"):
        cell.bind_injection(torch.zeros(5, 4))
    with pytest.raises(TypeError, match=r"u must have the cell's dtype torch.float32, got torch.float64"):
        cell.bind_injection(torch.zeros(5, 8).double())
