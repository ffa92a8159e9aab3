"""At which sizes everything is run: FULL on a GPU, DRY on the CPU of a continuous-integration machine."""

from __future__ import annotations

from dataclasses import dataclass

ALL_SOLVERS = ("picard", "anderson", "auto")
BOTH = ("mixed", "full")
# "compiled" is a compiled step in a Python loop.
RIVALS = ("naive", "graphed", "compiled", "compiled graphed", "torchdeq fpi", "torchdeq anderson", "jax")
FEW = ("naive", "graphed")


@dataclass(frozen=True)
class Solve:
    """A cell's case and who is compared; `which` is the pass."""

    cell: str
    family: str
    batch: int
    dim: int
    solvers: tuple[str, ...] = ("picard",)
    precisions: tuple[str, ...] = ("mixed",)
    rivals: tuple[str, ...] = FEW
    which: str = "forward"

    def __str__(self) -> str:
        return f"{self.cell} {self.family} {self.batch}x{self.dim} {self.which}"


@dataclass(frozen=True)
class Step:
    """A fused step over problems of so many entries; history 0 is Picard."""

    problems: int
    entries: int
    history: int = 5
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"step {self.problems}x{self.entries} history {self.history} {self.dtype}"


@dataclass(frozen=True)
class Transformer:
    """A map of transformer blocks, iterated a fixed number of Anderson steps."""

    batch: int
    tokens: int
    width: int
    heads: int
    blocks: int
    steps: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.blocks}-block transformer {self.dtype}"

    def __str__(self) -> str:
        return f"{self.name} {self.batch}x{self.tokens}x{self.width}"


@dataclass(frozen=True)
class Planned:
    """A call whose plans are compared; an adjoint is that of a backward pass."""

    operator: str
    batch: int
    dim: int
    solver: str = "auto"
    precision: str = "full"
    dtype: str = "float32"

    @property
    def cell(self) -> str:
        return self.operator.split("_")[1]

    @property
    def which(self) -> str:
        return "backward" if self.operator.endswith("_adjoint") else "forward"

    def __str__(self) -> str:
        return f"{self.operator} {self.batch}x{self.dim} {self.solver} {self.precision} {self.dtype}"


@dataclass(frozen=True)
class Sizes:
    """All of them, and the seconds of timing a case may take."""

    copy_bytes: int
    product: int  # edge of the square matrices
    special_rounds: int
    steps: tuple[Step, ...]
    cells: tuple[Solve, ...]
    maps: tuple[Transformer, ...]
    training: tuple[Solve, ...]
    memory: tuple[int, int]  # batch, state
    memory_steps: tuple[int, ...]
    counted: tuple[int, int]  # batch, state
    plans: tuple[Planned, ...]  # no two in one entry of a table
    plan_seconds: float  # after which no further plan of a case is tried
    seconds: float
    repeats: int  # of a case, at least


FULL = Sizes(
    copy_bytes=1 << 30,
    product=8192,
    special_rounds=4096,
    steps=(
        Step(1, 10**5),
        Step(1, 10**6),
        Step(1, 10**7),
        Step(1, 10**7, dtype="bfloat16"),
        Step(1, 10**8),
        Step(1, 10**6, history=0),
        Step(1, 512),
        Step(256, 512),
        Step(4096, 128),
        Step(1024, 4096),
    ),
    cells=(
        Solve("affine", "orth", 65536, 128, ("picard",), ("mixed",), ("naive", "graphed", "compiled graphed")),
        Solve("affine", "orth", 65536, 256, ("picard",), ("mixed",), ("naive", "graphed", "compiled graphed")),
        Solve("affine", "orth", 4096, 64, ("picard",), ("mixed",), RIVALS),
        Solve("affine", "orth", 4096, 128, ALL_SOLVERS, BOTH, RIVALS),
        Solve("affine", "orth", 4096, 256, ("picard", "auto"), BOTH, RIVALS),
        Solve("affine", "orth", 4096, 512, ("picard", "auto"), BOTH, RIVALS),
        Solve("affine", "sym", 4096, 128, ALL_SOLVERS, BOTH),
        Solve("affine", "sym", 4096, 256, ALL_SOLVERS),
        Solve("affine", "orth", 1, 1024, ("picard", "auto"), ("full",)),
        Solve("affine", "orth", 32, 1024, ("picard", "auto"), ("full",)),
        Solve("affine", "orth", 256, 2048, ("picard",), BOTH),
        Solve("mlp", "orth", 4096, 128, ("picard", "auto"), BOTH),
        Solve("mlp", "sym", 4096, 128, ALL_SOLVERS),
        Solve("gated", "orth", 4096, 128, ("picard", "auto"), BOTH),
        Solve("gated", "sym", 4096, 128, ALL_SOLVERS),
    ),
    maps=(
        Transformer(1, 97, 512, 8, 2, 20, "float32"),
        Transformer(768, 97, 512, 8, 2, 20, "bfloat16"),
    ),
    training=(
        Solve("affine", "orth", 4096, 128, ("picard", "auto"), ("mixed",), ("naive",), "forward+backward"),
        Solve("affine", "sym", 4096, 128, ("auto",), ("mixed",), ("naive",), "forward+backward"),
        Solve("affine", "orth", 4096, 128, ("picard",), BOTH, ("naive",), "backward"),
        Solve("mlp", "orth", 4096, 128, ("auto",), ("mixed",), ("naive",), "forward+backward"),
        Solve("gated", "orth", 4096, 128, ("auto",), ("mixed",), ("naive",), "forward+backward"),
    ),
    memory=(4096, 128),
    memory_steps=(8, 32, 128, 512),
    counted=(4096, 128),
    plans=(
        Planned("solve_affine", 65536, 128, "picard", "mixed"),
        Planned("solve_affine", 65536, 256, "picard", "mixed"),
        Planned("solve_affine", 4096, 128, "picard", "mixed"),
        Planned("solve_affine", 4096, 64),
        Planned("solve_affine", 4096, 128),
        Planned("solve_affine", 4096, 256),
        Planned("solve_affine", 1024, 256),
        Planned("solve_affine", 4096, 512),
        Planned("solve_affine", 1, 256),
        Planned("solve_affine", 1, 1024),
        Planned("solve_affine", 32, 1024),
        Planned("solve_affine", 256, 2048, "picard"),
        Planned("solve_affine", 256, 256, dtype="float64"),
        Planned("solve_mlp", 4096, 128),
        Planned("solve_mlp_adjoint", 4096, 128),
        Planned("solve_gated", 4096, 128),
        Planned("solve_gated_adjoint", 4096, 128),
    ),
    plan_seconds=25.0,
    seconds=0.6,
    repeats=5,
)

DRY = Sizes(
    copy_bytes=1 << 12,
    product=16,
    special_rounds=2,
    steps=(Step(1, 5000), Step(6, 40), Step(2, 30, history=0), Step(2, 64, dtype="bfloat16")),
    cells=(
        Solve("affine", "orth", 4, 8, ALL_SOLVERS, BOTH, ("naive", "graphed", "compiled graphed", "torchdeq fpi")),
        Solve("mlp", "sym", 3, 8, ("auto",), ("full",)),
        Solve("gated", "orth", 3, 8, ("picard",), ("full",)),
    ),
    maps=(Transformer(2, 5, 16, 2, 1, 12, "float32"),),
    training=(
        Solve("affine", "orth", 4, 8, ("auto",), ("full",), ("naive",), "forward+backward"),
        Solve("affine", "sym", 4, 8, ("picard",), ("full",), ("naive",), "backward"),
    ),
    memory=(16, 16),
    memory_steps=(4, 16),
    counted=(4, 8),
    plans=(
        Planned("solve_affine", 4, 8, "picard", "mixed"),
        Planned("solve_affine", 100, 24),
        Planned("solve_affine", 4, 8, dtype="float64"),
        Planned("solve_gated_adjoint", 3, 8),
    ),
    plan_seconds=25.0,
    seconds=0.004,
    repeats=1,
)
