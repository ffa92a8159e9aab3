"""Chebyshev fits of erfcx(t) = exp(t^2) erfc(t) in q = (t - 2) / (t + 2), written to csrc/common/.

The map sends t in [0, inf) to [-1, 1) and makes the function smooth enough there for one polynomial; its
coefficients are converted to the power basis in high precision. Run: python tools/fit_erfcx.py
"""

from pathlib import Path

import mpmath as mp

mp.mp.dps = 60
TARGET = Path(__file__).parent.parent / "csrc" / "common" / "erfcx_coefficients.inc"


def erfcx(t: mp.mpf) -> mp.mpf:
    return mp.exp(t * t) * mp.erfc(t)


def fit(degree: int, t_max: float) -> list[mp.mpf]:
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


def worst(coefficients: list[mp.mpf], t_max: float) -> float:
    errors = []
    for i in range(2001):
        t = mp.mpf(t_max) * i / 2000
        q = (t - 2) / (t + 2)
        errors.append(abs(mp.polyval(coefficients, q) / erfcx(t) - 1))
    return float(max(errors))


def main() -> None:
    lines = ["// Made by tools/fit_erfcx.py; highest power first."]
    for name, degree, t_max in (("erfcx_float", 11, 9), ("erfcx_double", 26, 26)):
        coefficients = fit(degree, t_max)
        lines.append(f"// relative error below {worst(coefficients, t_max):.1e} for t in [0, {t_max}]")
        lines.append(f"static constexpr double {name}[] = {{")
        lines += [f"    {mp.nstr(value, 17)}," for value in coefficients]
        lines.append("};")
    TARGET.write_text("\n".join(lines) + "\n")
    print("\n".join(line for line in lines if line.startswith("//")))


if __name__ == "__main__":
    main()
