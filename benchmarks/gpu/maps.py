"""Section `maps`: a map the package does not know, solved by a loop on the device, a loop on the host, and others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import attractor_kernels as ak
from attractor_kernels.bench.callables import CONTENDERS, map_alone, run_callable
from attractor_kernels.bench.contenders import Contender, Runner, Unavailable, without_gradients
from attractor_kernels.bench.gate import TOLERANCE

from .cells import wrong
from .context import Cases, Context, Result
from .device import Device
from .floors import Floor
from .sizes import Transformer

# Solves before a layer does what it will do from then on: the first is examined, the second recorded.
WARM_UPS = 3

# Of a state in each dtype after the steps of a case; what remains is the dtype's own rounding.
TOLERANCES = {"float32": TOLERANCE, "bfloat16": 3e-2}


def cases(context: Context) -> Cases:
    """One a map and batch."""
    for case in context.sizes.maps:
        yield str(case), lambda case=case: run_map(context, case)


class TransformerMap(torch.nn.Module):
    """f(z, x) = h / 2, h what pre-norm blocks of attention and MLP make of z + x; weights small, so it contracts.

    Only the module of a `FixedPoint` layer can be iterated on the device, hence a module.
    """

    def __init__(self, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(width)
        sizes = {"qkv": (3, 1), "out": (1, 1), "up": (4, 1), "down": (1, 4)}
        shapes = {name: (a * width, b * width) for name, (a, b) in sizes.items()}
        self.heads = heads
        self.blocks = torch.nn.ModuleList(
            torch.nn.ParameterDict(
                {
                    name: torch.nn.Parameter(0.3 * shape[1] ** -0.5 * torch.randn(shape, generator=generator))
                    for name, shape in shapes.items()
                }
            )
            for _ in range(blocks)
        )

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        batch, tokens, width = z.shape
        h = z + x
        for block in self.blocks:
            qkv = functional.linear(functional.rms_norm(h, (width,)), block["qkv"])
            heads = qkv.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(*heads.unbind())
            h = h + functional.linear(mixed.transpose(1, 2).reshape(batch, tokens, width), block["out"])
            up = functional.gelu(functional.linear(functional.rms_norm(h, (width,)), block["up"]))
            h = h + functional.linear(up, block["down"])
        return 0.5 * h


class TransformerProblem:
    """The map with its input, and its fixed point."""

    def __init__(self, case: Transformer, device: torch.device) -> None:
        self.case = case
        dtype = getattr(torch, case.dtype)
        self.module = TransformerMap(case.width, case.heads, case.blocks).to(device, dtype).requires_grad_(False)
        shape = (case.batch, case.tokens, case.width)
        self.x = torch.randn(shape, generator=torch.Generator().manual_seed(case.tokens)).to(device, dtype)
        self.z0 = torch.zeros_like(self.x)

    def step(self, z: Tensor) -> Tensor:
        return self.module(z, self.x)

    @cached_property
    def solution(self) -> Tensor:
        """The fixed point of the first problem alone, in float64; its residual is checked."""
        x, module = self.x[:1].double(), copy.deepcopy(self.module).double()
        z = torch.zeros_like(x)
        for _ in range(200):
            f = module(z, x)
            if float((f - z).norm() / f.norm()) < 1e-9:
                return f
            z = f
        raise RuntimeError(f"{self.case} did not converge in float64")

    def expected(self, which: str) -> dict[str, Tensor]:
        return {"z": self.solution.flatten(1)}


def _first(z: Tensor) -> dict[str, Tensor]:
    """The problem whose answer is known; all are solved by the same launches."""
    return {"z": z[:1].flatten(1)}


def _options(steps: int) -> dict[str, Any]:
    # A tolerance of 0 and as many steps at least as at most: everybody takes the same number.
    return dict(solver=ak.Anderson(), rtol=0.0, max_steps=steps, min_steps=steps)


def _solved(name: str, about: str, solve: Callable[[Any, int], tuple[Tensor, Any]], ours: bool) -> Contender:
    def build(problem: Any, which: str, steps: int) -> Runner:
        with torch.no_grad():
            for _ in range(WARM_UPS):
                _, info = solve(problem, steps)
        if int(info.steps.min()) != steps:
            raise Unavailable(f"took {int(info.steps.min())} steps where {steps} were asked for")
        runner = without_gradients(lambda: solve(problem, steps)[0])
        return Runner(runner.call, _first, {"steps_mean": float(steps), "steps_max": steps, "backend": info.backend})

    return Contender(name, about, ("forward",), build, ours=ours)


def _layer() -> Callable[[Any, int], tuple[Tensor, Any]]:
    """The layer, which is made once: what it learns of its module in its first solves is kept with it."""
    made: dict[int, ak.nn.FixedPoint] = {}

    def solve(problem: Any, steps: int) -> tuple[Tensor, Any]:
        layer = made.setdefault(steps, ak.nn.FixedPoint(problem.module, **_options(steps)))
        return layer(problem.x), layer.info

    return solve


def _host_loop(backend: str) -> Callable[[Any, int], tuple[Tensor, Any]]:
    """A plain callable, which the host always iterates itself."""
    return lambda problem, steps: ak.fixed_point(problem.step, problem.z0, backend=backend, **_options(steps))


def _map_alone(device: Device) -> Contender:
    def build(problem: Any, which: str, steps: int) -> Runner:
        return Runner(device.capture(map_alone(problem, which, steps).call), None, {"steps_max": steps})

    return Contender("floor", "the map alone, as many times, launched at once", ("forward",), build)


def run_map(context: Context, case: Transformer) -> Result:
    """One map: checked, timed, and what the loop adds to the map."""
    device, sizes = context.device, context.sizes
    problem: Any = TransformerProblem(case, device.where)
    torchdeq = next(contender for contender in CONTENDERS if contender.name == "torchdeq anderson")
    contenders = [
        _solved("layer", "ak.nn.FixedPoint, as it chooses", _layer(), ours=True),
        *(
            _solved(f"host loop {name}", f"steps by {name}, driven by the host", _host_loop(name), ours=True)
            for name in device.kernels
        ),
        _solved("torch loop", "the same loop in plain torch", _host_loop("reference"), ours=False),
        replace(torchdeq, build=_cut_to_first(torchdeq)),
        _map_alone(device),
    ]
    tolerance = TOLERANCES[case.dtype]
    contenders = [replace(contender, tolerances=(tolerance, tolerance)) for contender in contenders]
    row = run_callable(
        case,  # type: ignore[arg-type]
        sizes.seconds,
        sizes.repeats,
        problem=problem,
        contenders=contenders,
        stopwatch=device.stopwatch,
    )
    floor = row.entries["floor"].seconds
    for entry in row.entries.values():
        if entry.ours and floor is not None:
            entry.facts |= Floor(floor, "the map").facts()
    return {"rows": [row.to_json()], "problems": wrong(row)}


def _cut_to_first(contender: Contender) -> Callable[[Any, str, int], Runner]:
    def build(problem: Any, which: str, steps: int) -> Runner:
        runner = contender.build(problem, which, steps)
        return replace(runner, results=_first)

    return build
