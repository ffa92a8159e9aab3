"""Options as values: how a problem is solved, and how gradients flow.

Every option is a small frozen dataclass, checked when it is made, that can be passed, printed and compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

__all__ = [
    "Anderson",
    "Auto",
    "Broyden",
    "Gradient",
    "Implicit",
    "Neumann",
    "OneStep",
    "Phantom",
    "Picard",
    "Solver",
    "Unrolled",
]

# The fused kernels keep their small system on the stack (csrc/common/small_solve.h, kMaxHistory).
MAX_ANDERSON_HISTORY = 32

# The kernels count steps in 32 bits.
MAX_STEPS = 2**31 - 1


def check_int(name: str, value: Any, *, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int in [low, high], or an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    number = int(value)
    if (low is not None and number < low) or (high is not None and number > high):
        raise ValueError(f"{name} must be {_range(low, high)}, got {number}")
    return number


def check_max_steps(name: str, value: Any) -> int:
    """`value` as a number of steps that the kernels can count."""
    return check_int(name, check_int(name, value, low=1), high=MAX_STEPS)


def check_float(name: str, value: Any, *, positive: bool = False) -> float:
    """`value` as a finite float that is not negative (or, with `positive`, greater than 0)."""
    number = check_number(name, value)
    if number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be {'greater than' if positive else 'at least'} 0, got {value!r}")
    return number


def check_number(name: str, value: Any) -> float:
    """`value` as a finite float of either sign."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a float, got {value!r} of type {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r} of type {type(value).__name__}")
    return value


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    expected = ", ".join(repr(choice) for choice in choices)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {expected}, got {value!r} of type {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {expected}, got {value!r}")
    return value


def _range(low: int | None, high: int | None) -> str:
    if low is not None and high is not None:
        return f"between {low} and {high}"
    return f"at least {low}" if high is None else f"at most {high}"


class _Options:
    """Stores checked values on a frozen dataclass."""

    __slots__ = ()

    def _set_int(self, name: str, *, low: int, high: int | None = None) -> None:
        object.__setattr__(self, name, check_int(self._where(name), getattr(self, name), low=low, high=high))

    def _set_float(self, name: str, *, positive: bool = False) -> None:
        object.__setattr__(self, name, check_float(self._where(name), getattr(self, name), positive=positive))

    def _where(self, name: str) -> str:
        return f"{type(self).__name__}({name}=...)"


class Solver(_Options):
    """Base of the solvers: `Auto`, `Picard`, `Anderson`, `Broyden`."""

    __slots__ = ()


class Gradient(_Options):
    """Base of the gradient modes: `Implicit`, `OneStep`, `Phantom`, `Neumann`, `Unrolled`."""

    __slots__ = ()


@dataclass(frozen=True)
class Picard(Solver):
    """The fixed-point iteration z <- z + damping * (f(z) - z).

    Args:
        damping: step length, greater than 0. Default 1.0, the undamped iteration.

    >>> Picard()
    Picard(damping=1.0)
    """

    code: ClassVar[int] = 0  # as the operators take it
    damping: float = 1.0

    def __post_init__(self) -> None:
        self._set_float("damping", positive=True)


@dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration, type II (Anderson 1965; Walker & Ni 2011).

    The next iterate is h - sum_j gamma_j dH_j with h = z + damping * (f(z) - z), dH_j the last differences of h, and
    gamma the weights that make the same combination of residual differences closest to the residual.

    Args:
        history: differences kept, 1 to 32. At most the number of entries of a mixing group is used. Default 5.
        damping: step length beta ("mixing" in some papers), greater than 0. Default 1.0.
        ridge: regularisation of the small system, relative to the mean of its diagonal, so that it does not depend
            on the problem's scale. At least 0. Default 1e-8.

    >>> Anderson(history=3).history
    3
    """

    code: ClassVar[int] = 1
    history: int = 5
    damping: float = 1.0
    ridge: float = 1e-8

    def __post_init__(self) -> None:
        self._set_int("history", low=1, high=MAX_ANDERSON_HISTORY)
        self._set_float("damping", positive=True)
        self._set_float("ridge")


@dataclass(frozen=True)
class Auto(Solver):
    """Picard steps first; Anderson for each problem whose own residuals show that it pays.

    The fused CPU solves of `AffineCell`, and their adjoints, go nearer at once where there is no damping, for as long
    as a step takes a quarter off the residual: with M, the inverse of 1 - leak - s W for a usual slope s, in place of
    each problem's own (1 - J)^-1. States of up to 56 take z + M (f(z) - z), and the same once more for what that leaves
    to first order. Larger ones, on processors with 8-bit products, take Newton steps: the equations (1 - J) d = f(z) -
    z are solved roughly, in 8 bits, with M up to a state of 256 and without beyond, by at most `max_steps` products per
    problem; with a matrix unit float32 iterates are rounded to where products of changes are as good as full ones.
    `MLPCell` and `GatedCell`, and their adjoints, take Newton steps there too, with their whole J in 8 bits and without
    M; small states of an `MLPCell` do not. No product between evaluations of f counts as a step. The residual is that
    of f all the same, and so are tolerance and result. M costs products of as many rows as the state has entries, and
    is kept for the next call with the same weights.

    Args:
        history: as in `Anderson`. Default 5.
        damping: as in `Anderson`. Default 1.0.
        ridge: as in `Anderson`. Default 1e-8.

    >>> Auto() == Auto(history=5)
    True
    """

    code: ClassVar[int] = 2
    history: int = 5
    damping: float = 1.0
    ridge: float = 1e-8

    def __post_init__(self) -> None:
        self._set_int("history", low=1, high=MAX_ANDERSON_HISTORY)
        self._set_float("damping", positive=True)
        self._set_float("ridge")


@dataclass(frozen=True)
class Broyden(Solver):
    """Broyden's good method with limited memory (Broyden 1965; Kelley 1995, ch. 7), one Jacobian estimate a problem.

    Args:
        history: rank-one updates kept; when they are used up the estimate starts again from Picard's. At least 1.
            Default 20.
        damping: step length, greater than 0. Default 1.0.

    >>> Broyden(history=10)
    Broyden(history=10, damping=1.0)
    """

    history: int = 20
    damping: float = 1.0

    def __post_init__(self) -> None:
        self._set_int("history", low=1)
        self._set_float("damping", positive=True)


@dataclass(frozen=True)
class Implicit(Gradient):
    """The exact gradient of the fixed point, from the adjoint equation w = J^T w + v.

    The adjoint is solved like the forward problem, to a tolerance relative to its own solution, so that scaling a
    loss scales its gradient. How it ended stands in `info.adjoint`. Second derivatives are exact too.

    Args:
        rtol: tolerance of the adjoint solve. None: the forward's.
        max_steps: most steps of the adjoint solve. None: the forward's.
        solver: solver of the adjoint equation. None: the forward's.

    >>> Implicit(rtol=1e-6)
    Implicit(rtol=1e-06, max_steps=None, solver=None)
    """

    rtol: float | None = None
    max_steps: int | None = None
    solver: Solver | None = None

    def __post_init__(self) -> None:
        if self.rtol is not None:
            self._set_float("rtol")
        if self.max_steps is not None:
            object.__setattr__(self, "max_steps", check_max_steps(self._where("max_steps"), self.max_steps))
        if self.solver is not None:
            check_solver(self._where("solver"), self.solver, "or None")


@dataclass(frozen=True)
class OneStep(Gradient):
    """The gradient of one evaluation of f at the fixed point (Jacobian-free backpropagation; Fung et al. 2022).

    >>> OneStep()
    OneStep()
    """


@dataclass(frozen=True)
class Phantom(Gradient):
    """The gradient of a few damped steps taken from the fixed point (Geng et al. 2021).

    Args:
        steps: evaluations of f differentiated, at least 1. Default 2.
        damping: step length of those steps, greater than 0. Default 1.0.

    >>> Phantom(steps=3).steps
    3
    """

    steps: int = 2
    damping: float = 1.0

    def __post_init__(self) -> None:
        self._set_int("steps", low=1)
        self._set_float("damping", positive=True)


@dataclass(frozen=True)
class Neumann(Gradient):
    """The adjoint by a truncated Neumann series, w = v + J^T v + ... + (J^T)^terms v.

    Args:
        terms: powers of J^T added to v, at least 1. Default 1.
        clip: largest norm of each added term relative to |v|, per problem; a longer one is scaled down to it.
            None: no limit.

    >>> Neumann(terms=4)
    Neumann(terms=4, clip=None)
    """

    terms: int = 1
    clip: float | None = None

    def __post_init__(self) -> None:
        self._set_int("terms", low=1)
        if self.clip is not None:
            self._set_float("clip", positive=True)


@dataclass(frozen=True)
class Unrolled(Gradient):
    """Automatic differentiation through the solver's own steps.

    Args:
        last: differentiate each problem's last so many updates only; the iterate before them is a constant.
            None: all of them. The solver then runs twice, the first time without gradients. Default None.

    >>> Unrolled(last=2)
    Unrolled(last=2)
    """

    last: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None:
            self._set_int("last", low=1)


def check_solver(name: str, value: Any, extra: str = "") -> Solver:
    if not isinstance(value, (Auto, Anderson, Picard, Broyden)):
        hint = f" (did you mean {value.__name__}()?)" if isinstance(value, type) and issubclass(value, Solver) else ""
        raise TypeError(
            f"{name} must be an Auto, Anderson, Picard or Broyden {extra}".rstrip() + f", got {value!r}{hint}"
        )
    return value


def check_gradient(name: str, value: Any) -> Gradient:
    if not isinstance(value, (Implicit, OneStep, Phantom, Neumann, Unrolled)):
        is_class = isinstance(value, type) and issubclass(value, Gradient)
        hint = f" (did you mean {value.__name__}()?)" if is_class else ""
        raise TypeError(f"{name} must be an Implicit, OneStep, Phantom, Neumann or Unrolled, got {value!r}{hint}")
    return value
