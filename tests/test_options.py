"""Options are values that can be compared and printed, and refuse what they cannot be."""

import dataclasses
import inspect
import math
import pickle

import numpy as np
import pytest
import torch

import attractor_kernels as ak

ALL = [
    ak.Picard(),
    ak.Anderson(),
    ak.Auto(),
    ak.Broyden(),
    ak.Implicit(),
    ak.OneStep(),
    ak.Phantom(),
    ak.Neumann(),
    ak.Unrolled(),
]


@pytest.mark.parametrize("option", ALL, ids=repr)
def test_values(option):
    assert option == type(option)()
    assert hash(option) == hash(type(option)())
    assert eval(repr(option), vars(ak)) == option
    assert pickle.loads(pickle.dumps(option)) == option
    with pytest.raises(AttributeError):
        option.anything = 1


def test_defaults():
    assert ak.Anderson() == ak.Anderson(history=5, damping=1.0, ridge=1e-8)
    assert ak.Auto() == ak.Auto(history=5, damping=1.0, ridge=1e-8)
    assert ak.Picard() == ak.Picard(damping=1.0)
    assert ak.Broyden() == ak.Broyden(history=20, damping=1.0)
    assert ak.Phantom() == ak.Phantom(steps=2, damping=1.0)
    assert ak.Neumann() == ak.Neumann(terms=1, clip=None)


def test_numbers_are_normalised():
    assert ak.Anderson(history=np.int64(3), damping=1) == ak.Anderson(history=3, damping=1.0)
    assert type(ak.Anderson(history=np.int64(3)).history) is int
    assert type(ak.Picard(damping=1).damping) is float


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ak.Anderson(history=0), r"Anderson\(history=...\) must be between 1 and 32, got 0"),
        (lambda: ak.Anderson(history=33), r"Anderson\(history=...\) must be between 1 and 32, got 33"),
        (lambda: ak.Auto(history=-1), r"Auto\(history=...\) must be between 1 and 32, got -1"),
        (lambda: ak.Broyden(history=0), r"Broyden\(history=...\) must be at least 1, got 0"),
        (lambda: ak.Picard(damping=0), r"Picard\(damping=...\) must be greater than 0, got 0"),
        (lambda: ak.Picard(damping=float("nan")), r"Picard\(damping=...\) must be finite, got nan"),
        (lambda: ak.Anderson(ridge=-1e-8), r"Anderson\(ridge=...\) must be at least 0, got -1e-08"),
        (lambda: ak.Anderson(ridge=float("inf")), r"Anderson\(ridge=...\) must be finite, got inf"),
        (lambda: ak.Implicit(rtol=-1.0), r"Implicit\(rtol=...\) must be at least 0"),
        (lambda: ak.Implicit(max_steps=0), r"Implicit\(max_steps=...\) must be at least 1, got 0"),
        (lambda: ak.Phantom(steps=0), r"Phantom\(steps=...\) must be at least 1, got 0"),
        (lambda: ak.Neumann(terms=0), r"Neumann\(terms=...\) must be at least 1, got 0"),
        (lambda: ak.Neumann(clip=0.0), r"Neumann\(clip=...\) must be greater than 0, got 0.0"),
        (lambda: ak.Unrolled(last=0), r"Unrolled\(last=...\) must be at least 1, got 0"),
    ],
)
def test_wrong_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ak.Anderson(history=2.0), r"Anderson\(history=...\) must be an int, got 2.0 of type float"),
        (lambda: ak.Anderson(history=True), r"Anderson\(history=...\) must be an int, got True of type bool"),
        (lambda: ak.Anderson(history=None), r"must be an int, got None"),
        (lambda: ak.Picard(damping="1"), r"Picard\(damping=...\) must be a float, got '1' of type str"),
        (lambda: ak.Implicit(solver="anderson"), r"Implicit\(solver=...\) must be .* or None, got 'anderson'"),
        (lambda: ak.Implicit(solver=ak.Anderson), r"did you mean Anderson\(\)\?"),
        (lambda: ak.Anderson(memory=3), "memory"),
        (lambda: ak.OneStep(1), "positional"),
    ],
)
def test_wrong_types(make, message):
    with pytest.raises(TypeError, match=message):
        make()


COUNT = [0, -1, 1.5, True, "1", None, math.nan]
POSITIVE = [0.0, -1.0, math.nan, math.inf, -math.inf, True, "1", None, 1j]
NOT_NEGATIVE = POSITIVE[1:]
# What each field must refuse. None is what some take for "not given".
WRONG = {
    "history": COUNT,
    "damping": POSITIVE,
    "ridge": NOT_NEGATIVE,
    "steps": COUNT,
    "terms": COUNT,
    "last": [wrong for wrong in COUNT if wrong is not None],
    "clip": [wrong for wrong in POSITIVE if wrong is not None],
    "solver": ["auto", ak.Auto, 1, ak.OneStep()],
    "rtol": [wrong for wrong in NOT_NEGATIVE if wrong is not None],
    "max_steps": [wrong for wrong in COUNT if wrong is not None],
}


@pytest.mark.parametrize(
    ("option", "field"), [(option, field.name) for option in ALL for field in dataclasses.fields(option)], ids=str
)
def test_every_field_is_checked(option, field):
    for wrong in WRONG[field]:
        with pytest.raises((TypeError, ValueError), match=rf"{type(option).__name__}\({field}=...\) must be"):
            type(option)(**{field: wrong})


@pytest.mark.parametrize("option", ALL, ids=repr)
def test_unknown_fields_are_refused(option):
    with pytest.raises(TypeError, match="unexpected keyword argument 'tolerance'"):
        type(option)(tolerance=1e-3)


WRONG_OF_A_SOLVE = {
    "solver": ["auto", ak.Auto, None, ak.OneStep()],
    "gradient": ["implicit", ak.Implicit, None, ak.Auto()],
    "rtol": NOT_NEGATIVE,
    "atol": NOT_NEGATIVE,
    "max_steps": COUNT,
    "min_steps": [-1, 51, 1.5, True, "1", None],
    "batch_ndim": [-1, 3, 1.0, True, "1", None],
    "mixing_ndim": [0, 3, 1.0, True, "1"],
    "keep": ["first", "BEST", 1, True, None],
    "trace": [0, 1, "yes", None],
    "precision": ["low", "bf16", 16, True, torch.bfloat16],
    "backend": ["gpu", "CPU", 0, None, torch.device("cpu")],
}


@pytest.mark.parametrize("name", WRONG_OF_A_SOLVE)
def test_every_option_of_a_solve_is_checked(name):
    """In the function and in the layer, for an unknown map and for a cell."""
    z0, cell = torch.zeros(2, 3), ak.nn.AffineCell(3, 3)
    for wrong in WRONG_OF_A_SOLVE[name]:
        for f in (torch.cos, cell.bind(z0)):
            with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
                ak.fixed_point(f, z0, **{name: wrong})
        with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
            ak.nn.FixedPoint(cell, **{name: wrong})(z0)


def test_no_option_of_a_solve_is_forgotten():
    parameters = inspect.signature(ak.fixed_point).parameters.values()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(WRONG_OF_A_SOLVE)


def test_unknown_options_of_a_solve_are_refused():
    z0, cell = torch.zeros(2, 3), ak.nn.AffineCell(3, 3)
    for call in (
        lambda **options: ak.fixed_point(torch.cos, z0, **options),
        lambda **options: ak.nn.FixedPoint(cell, **options),
        lambda **options: ak.nn.AffineCell(3, 3, **options),
        lambda **options: ak.nn.MLPCell(3, 3, **options),
        lambda **options: ak.nn.GatedCell(3, 3, **options),
        lambda **options: ak.ops.solve_affine(z0, z0, torch.eye(3), **options),
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument 'tolerance'"):
            call(tolerance=1e-3)


def test_status_values():
    """The numbers are part of the compiled kernels too."""
    assert [(s.name, int(s)) for s in ak.Status] == [
        ("CONVERGED", 0),
        ("MAX_STEPS", 1),
        ("DIVERGED", 2),
        ("NONFINITE", 3),
        ("STAGNATED", 4),
    ]
