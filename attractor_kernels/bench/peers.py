"""Other solvers, at the same tolerance: torchdeq's two and a jitted JAX loop. Each is optional."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .cases import MAX_STEPS, RTOL, Problem
from .compiled import COMPILED
from .contenders import FLOOR, NAIVE, Contender, Runner, Unavailable, differentiable, without_gradients
from .gate import LOOSE_TOLERANCE, TOLERANCE


def require_torchdeq() -> Any:
    """The module, or `Unavailable`."""
    try:
        import torchdeq
    except ImportError as error:
        raise Unavailable("torchdeq is not installed") from error
    return torchdeq


def _needed_iterations(solver: Callable[..., Any], step: Callable[[Tensor], Tensor], z0: Tensor) -> int:
    """Iterations after which every row has met the tolerance, or has come as close to it as it ever does.

    torchdeq stops by itself at the tolerance; the limit matters only where it does not reach it.
    """
    with torch.no_grad():
        _, _, info = solver(step, z0, max_iter=MAX_STEPS, tol=RTOL, stop_mode="rel")
    needed = int(info["nstep"].max())
    return max(needed, 3)


def _torchdeq_forward(which_solver: str) -> Callable[[Problem, str, int], Runner]:
    def build(problem: Problem, which: str, steps: int) -> Runner:
        solver = require_torchdeq().solver.get_solver(which_solver)
        if which != "forward":
            return _torchdeq_training(problem, which, which_solver)
        step = problem.map.step(problem.u, problem.parameters)
        limit = _needed_iterations(solver, step, problem.z0)
        runner = without_gradients(lambda: solver(step, problem.z0, max_iter=limit, tol=RTOL, stop_mode="rel")[0])
        runner.facts = {"steps_max": limit}
        return runner

    return build


def _torchdeq_training(problem: Problem, which: str, which_solver: str) -> Runner:
    """`get_deq(ift=True)`: the implicit gradient by the same solver."""
    torchdeq = require_torchdeq()
    solver = torchdeq.solver.get_solver(which_solver)
    step = problem.map.step(problem.u, problem.parameters)
    limit = _needed_iterations(solver, step, problem.z0)
    deq = torchdeq.get_deq(
        ift=True,
        f_solver=which_solver,
        b_solver=which_solver,
        f_max_iter=limit,
        # The adjoint's spectrum is that of the map, so its solve takes about as many; none is cut short.
        b_max_iter=2 * limit,
        f_tol=RTOL,
        b_tol=RTOL,
        f_stop_mode="rel",
        b_stop_mode="rel",
    ).train()
    leaves = problem.leaves()
    parameters = {name: leaf for name, leaf in leaves.items() if name != "u"}

    def solve() -> Tensor:
        (z,), _ = deq(problem.map.step(leaves["u"], parameters), problem.z0)
        return z

    runner = differentiable(solve, leaves, problem.cotangent, which)
    runner.facts = {"steps_max": limit}
    return runner


def _build_jax(problem: Problem, which: str, steps: int) -> Runner:
    try:
        import jax
        import jax.numpy as jnp
    except ImportError as error:
        raise Unavailable("JAX is not installed") from error
    if problem.z0.dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)
    if problem.z0.device.type == "cuda":
        if jax.default_backend() != "gpu":
            raise Unavailable(f"JAX runs on {jax.default_backend()}, not on the device")
        # There its default would round the operands of float32 products.
        jax.config.update("jax_default_matmul_precision", "highest")
    make_step = problem.map.jax_step

    def solve(z0: Any, u: Any, parameters: dict[str, Any]) -> Any:
        step = make_step(u, parameters)

        def going_on(carry: tuple[Any, Any, Any]) -> Any:
            count, _, residual = carry
            return (residual > RTOL) & (count < MAX_STEPS)

        def body(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            count, z, _ = carry
            f = step(z)
            g = jnp.sum((f - z) ** 2, axis=1)
            return count + 1, f, jnp.sqrt(jnp.max(g / jnp.sum(f * f, axis=1)))

        return jax.lax.while_loop(going_on, body, (0, z0, jnp.asarray(jnp.inf, z0.dtype)))

    compiled = jax.jit(solve)

    def array(tensor: Tensor) -> Any:
        return jnp.asarray(tensor.cpu().numpy())

    arrays = array(problem.z0), array(problem.u)
    parameters = {name: array(p) for name, p in problem.parameters.items()}
    on_device = problem.z0.device.type == "cuda"

    def call() -> Any:
        if on_device:
            torch.cuda.synchronize()  # JAX has a stream of its own
        return jax.block_until_ready(compiled(*arrays, parameters))

    def results(returned: Any) -> Mapping[str, Tensor]:
        import numpy

        return {"z": torch.from_numpy(numpy.array(returned[1]))}

    count, _, _ = call()
    return Runner(call, results, {"steps_max": int(count)})


FIXED_POINT_ITER = Contender(
    "torchdeq fpi",
    "torchdeq's fixed_point_iter, same relative tolerance",
    ("forward",),
    _torchdeq_forward("fixed_point_iter"),
)
ANDERSON = Contender(
    "torchdeq anderson",
    "torchdeq's anderson, same relative tolerance; with gradients get_deq(ift=True)",
    ("forward", "forward+backward"),
    _torchdeq_forward("anderson"),
    tolerances=(TOLERANCE, LOOSE_TOLERANCE),
)
JAX = Contender("jax", "jax.jit of lax.while_loop with a residual test per step", ("forward",), _build_jax)

BASELINES: dict[str, Contender] = {c.name: c for c in (NAIVE, COMPILED, FIXED_POINT_ITER, ANDERSON, JAX, FLOOR)}
