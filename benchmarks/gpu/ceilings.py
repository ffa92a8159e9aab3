"""Section `ceilings`: what the machine reaches, before anything of ours is held against it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from attractor_kernels.bench.timing import measure

from .context import Cases, Context, Result
from .floors import PRODUCTS


def cases(context: Context) -> Cases:
    """A large copy, large products, special functions, the shortest kernel."""
    yield "copy", lambda: _copy(context)
    for name in PRODUCTS:
        yield f"product {name}", lambda name=name: _product(context, name)
    yield "special functions", lambda: _special(context)
    yield "launch", lambda: _launch(context)


def _seconds(context: Context, call: Callable[[], Any]) -> float:
    sizes = context.sizes
    found = measure({"": call}, sizes.seconds, min_repeats=sizes.repeats, stopwatch=context.device.stopwatch)
    return found[""].median


def _copy(context: Context) -> Result:
    source = torch.randn(context.sizes.copy_bytes // 4, device=context.device.where)
    target = torch.empty_like(source)
    seconds = _seconds(context, lambda: target.copy_(source))
    if not torch.equal(source, target):
        raise RuntimeError("the copy is not what was copied")
    return {"seconds": seconds, "bytes_per_second": 2 * source.numel() * 4 / seconds}


@contextlib.contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _product(context: Context, name: str) -> Result:
    edge = context.sizes.product
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    a, b = (torch.randn(edge, edge, device=context.device.where).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with _float32_products("high" if name == "tf32" else "highest"):
        seconds = _seconds(context, lambda: torch.mm(a, b, out=out))
    row = a[:1].double() @ b.double()
    error = float((out[:1] - row).norm() / row.norm())
    if not error < 1e-2:
        raise RuntimeError(f"the product is {error:.1e} off")
    return {"seconds": seconds, "operations_per_second": 2 * edge**3 / seconds, "error": error}


def _special(context: Context) -> Result:
    call, evaluations = context.device.special_functions(context.sizes.special_rounds)
    seconds = _seconds(context, call)
    return {"seconds": seconds, "evaluations_per_second": evaluations / seconds}


def _launch(context: Context) -> Result:
    one = torch.zeros(1, device=context.device.where)
    return {"seconds": _seconds(context, one.zero_)}
