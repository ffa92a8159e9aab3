"""Coefficients of the fitted activation functions, written to csrc/common/activation_coefficients.h.

erfcx(t) = exp(t^2) erfc(t): a Chebyshev interpolant in q = (t - 2) / (t + 2), which sends t in [0, inf) to
[-1, 1). tanh: x P(x^2) / Q(x^2) with the least largest relative error, by Lawson's reweighted least squares on
the linearised problem (Cody 1970). Both are found in 40 digits. Run: python tools/fit_activations.py
"""

from pathlib import Path

import mpmath as mp
import numpy as np

mp.mp.dps = 40
TARGET = Path(__file__).parent.parent / "csrc" / "common" / "activation_coefficients.h"


def erfcx(t: mp.mpf) -> mp.mpf:
    return mp.exp(t * t) * mp.erfc(t)


def fit_erfcx(degree: int, t_max: float) -> list[mp.mpf]:
    """Power-basis coefficients in q, highest first, of the Chebyshev interpolant on t in [0, t_max]."""
    q_max = (mp.mpf(t_max) - 2) / (t_max + 2)
    middle, half = (q_max - 1) / 2, (q_max + 1) / 2
    nodes = [mp.cos(mp.pi * (k + mp.mpf(1) / 2) / (degree + 1)) for k in range(degree + 1)]
    values = [erfcx(2 * (1 + middle + half * s) / (1 - middle - half * s)) for s in nodes]
    matrix = mp.matrix(degree + 1, degree + 1)
    for row, s in enumerate(nodes):
        q = middle + half * s
        for column in range(degree + 1):
            matrix[row, column] = q ** (degree - column)
    return list(mp.lu_solve(matrix, mp.matrix(values)))


def erfcx_error(coefficients: list[mp.mpf], t_max: float) -> float:
    errors = []
    for i in range(2001):
        t = mp.mpf(t_max) * i / 2000
        errors.append(abs(mp.polyval(coefficients, (t - 2) / (t + 2)) / erfcx(t) - 1))
    return float(max(errors))


def fit_tanh(p_degree: int, q_degree: int, x_max: float) -> tuple[float, list[mp.mpf], list[mp.mpf]]:
    """Largest relative error and the coefficients of P and Q in x^2, highest first; Q's lowest is 1."""
    count = 240
    xs = [mp.mpf(x_max) * (1 - mp.cos(mp.pi * (k + mp.mpf(1) / 2) / count)) / 2 for k in range(count)]
    values = [mp.tanh(x) for x in xs]
    weight = np.ones(count) / count
    denominator = [mp.mpf(1)] * count
    best: tuple[float, list[mp.mpf], list[mp.mpf]] = (1.0, [], [])
    for _ in range(12):
        matrix, right = mp.matrix(count, p_degree + q_degree + 1), mp.matrix(count, 1)
        for i, (x, value) in enumerate(zip(xs, values, strict=True)):
            scale = mp.sqrt(weight[i]) / (value * denominator[i])
            for j in range(p_degree + 1):
                matrix[i, j] = scale * x ** (2 * j + 1)
            for j in range(q_degree):
                matrix[i, p_degree + 1 + j] = -scale * value * x ** (2 * j + 2)
            right[i] = scale * value
        found = list(mp.qr_solve(matrix, right)[0])
        p, q = found[p_degree::-1], [*found[:p_degree:-1], mp.mpf(1)]
        denominator = [mp.polyval(q, x * x) for x in xs]
        error = np.array(
            [
                float(abs(x * mp.polyval(p, x * x) / d / value - 1))
                for x, d, value in zip(xs, denominator, values, strict=True)
            ]
        )
        if error.max() < best[0]:
            best = (float(error.max()), p, q)
        weight = weight * (error + 1e-3 * error.max())
        weight /= weight.sum()
    return best


def array(name: str, coefficients: list[mp.mpf]) -> list[str]:
    values = [f"      {mp.nstr(value, 17)}," for value in coefficients]
    return [f"constexpr Coefficients<{len(values)}> {name}() {{", "  return {{", *values, "  }};", "}"]


def main() -> None:
    lines = ["// Made by tools/fit_activations.py; highest power first.", "#pragma once", "", "namespace ak {", ""]
    # Functions, because device code cannot refer to an array at namespace scope.
    lines += ["template <int n>", "struct Coefficients {", "  double c[n];", "};", ""]
    for name, degree, t_max in (("erfcx_float", 11, 9), ("erfcx_double", 26, 26)):
        coefficients = fit_erfcx(degree, t_max)
        error = erfcx_error(coefficients, t_max)
        lines.append(f"// relative error below {error:.1e} for t in [0, {t_max}]")
        lines += [*array(name, coefficients), ""]
    error, p, q = fit_tanh(4, 4, 9)
    lines.append(f"// tanh x = x P(x^2) / Q(x^2): relative error below {error:.1e} for |x| <= 9")
    lines += array("tanh_p", p) + array("tanh_q", q)
    TARGET.write_text("\n".join([*lines, "", "}  // namespace ak"]) + "\n")
    print("\n".join(line for line in lines if "error" in line))


if __name__ == "__main__":
    main()
