"""`fixed_point`, the front door: arguments checked once, then the shortest way to a kernel."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..info import SolveInfo
from ..options import Auto, Gradient, Implicit, Neumann, Solver, Unrolled
from . import gradient as gradients
from .bound import BoundCell
from .maps import CheckedMap
from .run import check_bound, operator_backend, run_map, run_operator
from .spec import HALVES, Spec, check_start, make_spec

# Checking the arguments costs more than a small solve, and so does hashing them. The last ones given, their objects as
# they were, and what was made of all of them so far, by value:
_latest: tuple[tuple[Any, ...], str, Spec] | None = None
_SPECS: dict[Any, Spec] = {}
_MOST_SPECS = 256


def fixed_point(
    f: Callable[[Tensor], Tensor] | BoundCell,
    z0: Tensor,
    *,
    solver: Solver = Auto(),
    gradient: Gradient = Implicit(),
    rtol: float = 1e-4,
    atol: float = 0.0,
    max_steps: int = 50,
    min_steps: int = 0,
    batch_ndim: int = 1,
    mixing_ndim: int | None = None,
    keep: str = "last",
    trace: bool = False,
    precision: str | None = None,
    backend: str = "auto",
) -> tuple[Tensor, SolveInfo]:
    """Solves z = f(z) for a batch of independent problems.

    A problem ends when |f(z) - z| <= atol + rtol * |f(z)| (L2 over its state) and at least `min_steps` evaluations
    were made. Its value, steps and residual are then final and its neighbours go on without it.

    Args:
        f: a callable z -> f(z) that keeps z's shape, dtype and device and does not modify z, or a cell bound to its
            input (`cell.bind(x)`), which is solved in one fused call where `batch_ndim` is z0.ndim - 1. On a CUDA
            device the host drives the steps of a callable, and f is evaluated up to twice after the last problem has
            ended; `nn.FixedPoint` can do without the host.
        z0: Tensor [*batch, *state] of a floating dtype, any strides; where the solve starts. Not modified.
        solver: `Auto()`, `Anderson(...)`, `Picard(...)` or `Broyden(...)`.
        gradient: `Implicit()`, `OneStep()`, `Phantom(...)`, `Neumann(...)` or `Unrolled(...)`. Gradients reach every
            parameter and input that f uses, closures included. All but Unrolled give z0 a gradient of zero.
        rtol: tolerance relative to |f(z)|. Default 1e-4.
        atol: absolute tolerance. Default 0.
        max_steps: most evaluations of f. Default 50. Memory does not grow with it.
        min_steps: fewest evaluations of f. Default 0.
        batch_ndim: leading dimensions of z0 that index independent problems. Default 1.
        mixing_ndim: leading dimensions with Anderson weights of their own, at least batch_ndim. Default batch_ndim.
            2 on [B, T, D] mixes per token: a causal f then stays causal, and Auto is Anderson, because its choice is
            made from a whole problem's residuals.
        keep: "last" returns the iterate a problem ended at, "best" the one with its lowest relative residual. A
            problem that diverged or met NaN or Inf returns its best finite iterate either way.
        trace: record the residual of every step in info.trace.
        precision: "full" (f is evaluated in full precision, always), "mixed" (fused kernels may take products of
            differences in 8 or 16 bits, to the same true residual) or None: mixed for bfloat16 and float16, else full
            where torch.get_float32_matmul_precision() is "highest" and mixed where it is not. Where Auto looks for
            the next iterate may be found in fewer bits either way (`Auto`).
        backend: "auto", or "cuda", "triton", "cpu", "reference" by name: an error where it cannot run the solve. What
            has no kernel in any of them (Broyden, a state that torch.func transforms) runs in plain torch.

    Returns:
        z [*batch, *state], in z0's dtype, and the `SolveInfo` of the same iterate.

    Raises:
        TypeError, ValueError: an argument, or what f returned, is not as above; the message names it.

    >>> import attractor_kernels as ak
    >>> z, info = ak.fixed_point(torch.cos, torch.zeros(1, 1, dtype=torch.float64), rtol=1e-12)
    >>> round(float(z), 6), ak.Status(int(info.status)).name
    (0.739085, 'CONVERGED')
    """
    if precision is None and getattr(z0, "dtype", None) in HALVES:
        precision = "mixed"
    key = (solver, gradient, rtol, atol, max_steps, min_steps, batch_ndim, mixing_ndim, keep, trace, precision, backend)
    spec = _spec(key)
    return solve(f, z0, spec)


def solve(f: Callable[[Tensor], Tensor] | BoundCell, z0: Tensor, spec: Spec) -> tuple[Tensor, SolveInfo]:
    """`fixed_point` with its options checked."""
    differentiate = torch.is_grad_enabled()
    if isinstance(f, BoundCell):
        check_bound(f, z0)
        check_start(z0, spec)
        backend = operator_backend(f, z0, spec)
        if backend is not None and not (differentiate and _needs_loop(spec)):
            return _solve_bound(f, z0, spec, backend, differentiate and f.needs_gradient(z0))
        checked: Callable[[Tensor], Tensor] = f
    else:
        check_start(z0, spec)
        checked = CheckedMap(f)
    if differentiate and torch.compiler.is_compiling():  # the adjoint of an unknown map cannot be traced
        from .untraced import solve_map_untraced

        return solve_map_untraced(checked, z0, spec)
    return solve_map(checked, z0, spec, differentiate)


def _solve_bound(f: BoundCell, z0: Tensor, spec: Spec, backend: str, differentiate: bool) -> tuple[Tensor, SolveInfo]:
    if not differentiate:
        return run_operator(f, z0, spec, backend)
    if isinstance(spec.gradient, Implicit) and spec.adjoint.tail is not None:
        return gradients.solve_bound(f, z0, spec, backend)
    with torch.no_grad():
        z, info = run_operator(f, z0, spec, backend)
    return gradients.attach(f, z0, z, spec, info), info


def solve_map(f: Callable[[Tensor], Tensor], z0: Tensor, spec: Spec, differentiate: bool) -> tuple[Tensor, SolveInfo]:
    """Solves for a checked map that no operator knows."""
    if not differentiate:
        return run_map(f, z0, spec)
    if isinstance(spec.gradient, Unrolled):
        return gradients.unroll(f, z0, spec)
    with torch.no_grad():
        z, info = run_map(f, z0.detach(), spec)
    return gradients.attach(f, z0, z, spec, info), info


def _needs_loop(spec: Spec) -> bool:
    """Whether this gradient cannot be had from an operator; Neumann's series can, but not traced."""
    traced = torch.compiler.is_compiling()
    return isinstance(spec.gradient, Unrolled) or (traced and isinstance(spec.gradient, Neumann))


def _spec(key: tuple[Any, ...]) -> Spec:
    """The checked options, from the last time they were given."""
    global _latest
    if torch.compiler.is_compiling():
        return make_spec(*key)
    # What precision=None means can change.
    matmul = torch.get_float32_matmul_precision()
    latest = _latest
    if latest is not None and latest[1] == matmul and all(map(is_, latest[0], key)):
        return latest[2]
    spec = _known_spec(key, matmul)
    _latest = (key, matmul, spec)
    return spec


def _known_spec(key: tuple[Any, ...], matmul: str) -> Spec:
    # 1, 1.0 and True are equal keys; their types tell them apart.
    typed = (key, tuple(map(type, key)), matmul)
    try:
        spec = _SPECS.get(typed)
    except TypeError:  # something unhashable, which the checks will name
        return make_spec(*key)
    if spec is None:
        if len(_SPECS) >= _MOST_SPECS:
            _SPECS.clear()
        spec = _SPECS[typed] = make_spec(*key)
    return spec
