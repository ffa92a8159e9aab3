"""Facts of the compiled CPU library (csrc/ops/facts.cpp). torch must be imported first."""

from collections.abc import Sequence
from typing import TypedDict

class Cuda(TypedDict):
    nvcc: str  # its version
    architectures: str  # "8.0 9.0a 10.0+PTX"
    absent: str  # why there are no CUDA kernels; else empty

class Build(TypedDict):
    torch: str  # built against
    target_torch: str  # oldest torch it loads in
    compiler: str
    pybind11: str
    common_flags: str
    kernel_flags: dict[str, str]  # by instruction set
    cuda: Cuda

class AffinePlan(TypedDict):
    tile_rows: int  # rows a thread iterates together
    block_rows: int  # rows of the register block
    block_columns: int  # outputs of the register block
    depth: int  # inputs per cache slice
    threads: int
    history: int  # kept per row
    anderson_price: float  # of an Anderson step over a Picard step, as Auto counts it
    packed_bytes: int
    scratch_bytes: int  # per thread

def build() -> Build: ...
def instruction_sets() -> dict[str, bool]:
    """Those compiled in, best first, and whether this processor has each."""

def instruction_set() -> str: ...
def set_instruction_set(name: str) -> None:
    """Uses another, in this process; for tests and measurements. ValueError where it is not supported."""

def cache_bytes() -> dict[str, int]:
    """By level ("L1d", "L2", "L3"), as far as the operating system tells."""

def plan_affine(rows: int, dim: int, solver: int, history: int, element_size: int, threads: int) -> AffinePlan: ...

class CudaSolvePlan(TypedDict):
    kernel: str
    mixed: bool  # products of changes on tensor cores
    tile_rows: int  # rows a block, or a crew, iterates together
    warps: int  # of a block
    blocks: int
    history: int  # kept per row
    anderson_price: float  # of an Anderson step over a Picard step, as Auto counts it
    shared_bytes: int  # of a block
    scratch_bytes: int  # of all blocks
    placement: str  # of the history
    measured: bool  # whether the table served the call

class CudaCrewPlan(CudaSolvePlan, total=False):
    """Where the weights are split over blocks."""

    members: int
    outputs: int  # of a member
    barriers: int  # of a step
    step_nanoseconds: float  # of a tile, reckoned

class CudaStepPlan(TypedDict):
    team: str  # "warp" or "block": what takes a problem, or a part of it
    split: bool  # whether several blocks take a problem
    chunk: int  # entries whose sums are one piece
    chunks: int  # of a mixing group
    teams: int
    solvers: int  # small systems a team solves at once
    kept_chunks: int  # whose h stays in shared memory between the sweeps
    wide_access: bool
    shared_bytes: int  # of a block

def cuda_plan_solve(
    op: str,
    rows: int,
    dim: int,
    hidden: int,
    solver: int,
    history: int,
    mixed: bool,
    element_size: int,
    processors: int,
    shared_per_block: int,
    capability: int,
    tile_rows: int = 0,
    blocks: int = 0,
    choose_mixed: int = -1,
    choose_crew: int = -1,
    choose_wgmma: int = -1,
    table: Sequence[Sequence[int]] = (),
) -> CudaCrewPlan:
    """capability: 10 times the major number and the minor one. ValueError where what was chosen cannot be had."""

def cuda_plan_step(
    problems: int,
    groups: int,
    entries: int,
    slots: int,
    stride: int,
    dtype: str,
    processors: int,
    shared_per_block: int,
) -> CudaStepPlan: ...
