"""Fixed-point iterations in plain numpy float64, written from the mathematics alone.

Nothing here knows the package: the least-squares problem of Anderson acceleration is solved by an orthogonal
factorisation (numpy.linalg.lstsq), not by normal equations, the adjoint equation by a dense solve. The figures that
were published for other codes are reproduced with it first; the package is then held against both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

Map = Callable[[np.ndarray], np.ndarray]

# Toth & Kelley (2015), table 1.
TOTH_KELLEY_RESIDUALS = (6.50111e-1, 4.48661e-1, 2.6148e-2, 7.25389e-2, 1.53107e-4, 1.18512e-5, 1.82476e-8, 1.04804e-13)


def picard(f: Map, x: np.ndarray, steps: int, damping: float = 1.0) -> list[np.ndarray]:
    """Iterates x_0 .. x_steps of x + damping * (f(x) - x)."""
    iterates = [x]
    for _ in range(steps):
        x = x + damping * (f(x) - x)
        iterates.append(x)
    return iterates


def anderson(f: Map, x: np.ndarray, steps: int, history: int, damping: float = 1.0) -> list[np.ndarray]:
    """Iterates x_0 .. x_steps of Anderson acceleration, type II (Walker & Ni 2011, algorithm AA, difference form).

    x_{k+1} = x_k - dX gamma + damping * (g_k - dG gamma), gamma = argmin |g_k - dG gamma|, over the latest
    min(history, size) differences.
    """
    history = min(history, x.size)
    iterates, residuals = [x], []
    for _ in range(steps):
        x = iterates[-1]
        residuals.append(f(x) - x)
        g = residuals[-1]
        depth = min(history, len(residuals) - 1)
        if depth == 0:
            iterates.append(x + damping * g)
            continue
        dx = np.diff(np.stack(iterates[-depth - 1 :], axis=-1), axis=-1)
        dg = np.diff(np.stack(residuals[-depth - 1 :], axis=-1), axis=-1)
        gamma = np.linalg.lstsq(dg, g, rcond=None)[0]
        iterates.append(x - dx @ gamma + damping * (g - dg @ gamma))
    return iterates


def residual_norms(f: Map, iterates: list[np.ndarray]) -> list[float]:
    return [float(np.linalg.norm(f(x) - x)) for x in iterates]


def max_steps_between(iterates: list[np.ndarray]) -> list[float]:
    """Largest entry of each |x_{k+1} - x_k|."""
    return [float(np.abs(b - a).max()) for a, b in itertools.pairwise(iterates)]


def first_below(values: list[float], bound: float) -> int | None:
    """How many values were looked at until one is below bound (None: none is)."""
    return next((k + 1 for k, value in enumerate(values) if value < bound), None)


def jacobian(f: Map, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences, [output, input]."""
    columns = []
    for j in range(x.size):
        e = np.zeros_like(x)
        e[j] = step
        columns.append((f(x + e) - f(x - e)) / (2 * step))
    return np.stack(columns, axis=-1)


def implicit_vjp(jacobian_z: np.ndarray, jacobian_u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """d(v . z*)/du where z* = f(z*, u): ((I - J_z)^-T v) J_u."""
    return np.linalg.solve((np.eye(len(v)) - jacobian_z).T, v) @ jacobian_u


def newton(f: Map, x: np.ndarray, steps: int = 50) -> np.ndarray:
    """A root of f(x) - x to rounding."""
    for _ in range(steps):
        x = x + np.linalg.solve(np.eye(x.size) - jacobian(f, x), f(x) - x)
    return x
