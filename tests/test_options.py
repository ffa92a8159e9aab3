"""Options are values that can be compared and printed, and refuse what they cannot be."""

import pickle

import numpy as np
import pytest

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


def test_status_values():
    """The numbers are part of the compiled kernels too."""
    assert [(s.name, int(s)) for s in ak.Status] == [
        ("CONVERGED", 0),
        ("MAX_STEPS", 1),
        ("DIVERGED", 2),
        ("NONFINITE", 3),
        ("STAGNATED", 4),
    ]
