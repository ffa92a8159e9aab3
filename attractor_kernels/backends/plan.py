"""How a kernel is launched for a shape: one value, chosen from facts of the device by a model a reader can check.

The model counts cycles of one multiprocessor. Its constants are published peaks and guesses, not measurements
(backends/triton/README.md says which); what it decides is which tile is launched, never a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from .override import told


@dataclass(frozen=True)
class DeviceFacts:
    """What a plan depends on."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    l2_bytes: int
    shared_bytes: int  # most a block can have

    @classmethod
    def of(cls, device: torch.device) -> DeviceFacts:
        """The facts of a CUDA device."""
        p = torch.cuda.get_device_properties(device)
        shared: int = p.shared_memory_per_block_optin  # type: ignore[attr-defined]
        return cls(p.name, (p.major, p.minor), p.multi_processor_count, p.L2_cache_size, shared)

    @property
    def float32_products(self) -> int:
        """Multiply-adds a cycle outside the tensor cores."""
        return 64 if self.capability == (8, 0) else 128

    @property
    def split_products(self) -> int:
        """Multiply-adds a cycle of a float32 product split into three TF32 ones, by mma.sync."""
        return (512 if self.capability[0] >= 9 or self.capability == (8, 0) else 256) // 3

    @property
    def bfloat16_products(self) -> int:
        """Multiply-adds a cycle of bfloat16 on tensor cores, at their peak."""
        return 2048 if self.capability[0] >= 9 else 1024 if self.capability == (8, 0) else 512


# Examples for tests and for `print` on machines without a device.
A100 = DeviceFacts("A100", (8, 0), 108, 40 << 20, 163 << 10)
H100 = DeviceFacts("H100", (9, 0), 132, 50 << 20, 227 << 10)
B200 = DeviceFacts("B200", (10, 0), 148, 126 << 20, 227 << 10)
NAMED_DEVICES = {device.name: device for device in (A100, H100, B200)}

L2_BYTES_A_CYCLE = 48  # what one multiprocessor gets of the second-level cache
STEP_CYCLES = 3000  # a step's reductions, small solve and barriers: waiting, whatever the tile
TILE_ENTRIES = 4096  # rows x padded state: 16 entries a thread of 8 warps; twice that spills registers
WARP_ENTRIES = 128  # 4 a thread; with fewer the compiler spreads a row, and so adds it up, in another way
LEAST_ENTRIES = 4 * WARP_ENTRIES
# Products of changes in bfloat16, and those in full beside them (backends/triton/changes.py): ...
CHANGES, FULL_BESIDE_CHANGES = "bf16 changes", "tf32x3"
ROUNDS_A_STEP = 1.16  # ... rounds a tile takes for a step of its rows, of which a seventh wait,
FULL_ROUNDS = 0.19  # the share of rounds with a product in full
REGISTERS = 65536  # of a multiprocessor
THREAD_REGISTERS = 255  # of a thread, all that there are


@dataclass(frozen=True)
class SolvePlan:
    """The launch of a whole solve; `print` shows a field a line."""

    kernel: str
    device: str
    rows: int  # of a tile
    columns: int  # the state, padded
    inputs: int  # of a product's slice
    hidden: int  # units of a hidden layer's slice; 0: no hidden layer
    warps: int
    registers: int  # a thread may take; left to itself the assembler would spill some to fit more warps
    stages: int  # slices in flight
    programs: int
    slots: int  # of the history's rings; 0: Picard
    precision: str  # of products, as Triton names it, or CHANGES
    kept: int  # vectors a row keeps for products of its changes; 0: there are none
    history: str  # where it lies
    scratch_bytes: int  # of all programs
    shared_bytes: int  # of a program, by estimate
    product_cycles: int  # of a step of a tile, with changes where there are such: the arithmetic floor ...
    weight_cycles: int  # ... and the floor of streaming the weights from the second-level cache

    @property
    def floor_cycles(self) -> int:
        return max(self.product_cycles, self.weight_cycles)

    @property
    def dots(self) -> str:
        """How Triton multiplies float32 numbers."""
        return FULL_BESIDE_CHANGES if self.kept else self.precision

    def __str__(self) -> str:
        lines = [f"{f.name:>15}  {getattr(self, f.name)}" for f in fields(self)]
        return "\n".join([*lines, f"{'floor_cycles':>15}  {self.floor_cycles}"])


def plan_solve(
    kernel: str,
    device: DeviceFacts,
    *,
    batch: int,
    dim: int,
    hidden: int,
    products: int,
    slots: int,
    vectors: int,
    control: int,
    precision: str,
    kept: int = 0,
    rows: int | None = None,
    choices: Mapping[str, int] | None = None,
) -> SolvePlan:
    """The plan of a solve: the tile that finishes the batch's steps first, in a size whose history stays in cache.

    products: multiply-adds of f for one row, which is also how many weights a tile reads. vectors, control: float32
    vectors and float64 numbers of scratch a row needs. kept: of these vectors, those for products of changes, 0 where
    all products are in full. rows: of a tile; None: the model's choice. choices: what goes before the model, as
    `use_plan` names it.
    """
    choices = choices or {}
    rows = choices.get("rows") if rows is None else rows
    columns = tile_columns(dim)
    # A row's arithmetic must not depend on the batch, so the slices follow from the shape of the cell alone.
    inputs = 16  # more would spill registers
    slice_hidden = min(32, max(16, power_of_two(hidden))) if hidden else 0

    def cost(rows: int) -> tuple[float, int]:
        resident = _resident(tile_warps(rows, columns))
        cycles = _step_cycles(device, precision, rows, resident, products, dim, kept)
        return -(-batch // (rows * device.multiprocessors * resident)) * cycles, rows

    if rows is None:
        rows = min((r for r in tile_rows(precision) if LEAST_ENTRIES <= r * columns <= TILE_ENTRIES), key=cost)
    warps = choices.get("warps", tile_warps(rows, columns))
    row_scratch = vectors * columns * 4 + control * 8
    # Three quarters of the cache: weights and the batch's own rows pass through it too.
    cached = max(1, device.l2_bytes * 3 // 4 // (rows * row_scratch))
    programs = min(-(-batch // rows), choices.get("programs", min(device.multiprocessors * _resident(warps), cached)))
    stages = choices.get("stages", 3)
    outputs = slice_hidden or columns
    product_cycles, weight_cycles = _product_cycles(device, CHANGES if kept else precision, rows, products)
    return SolvePlan(
        kernel=kernel,
        device=device.name,
        rows=rows,
        columns=columns,
        inputs=inputs,
        hidden=slice_hidden,
        warps=warps,
        registers=choices.get("registers", THREAD_REGISTERS),
        stages=stages,
        programs=programs,
        slots=slots,
        precision=CHANGES if kept else precision,
        kept=kept,
        history="none" if slots == 0 else "global scratch, held in the second-level cache",
        scratch_bytes=programs * rows * row_scratch,
        shared_bytes=((stages - 1) * inputs * (rows + outputs) + rows * columns + slice_hidden * columns) * 4,
        product_cycles=round(product_cycles),
        weight_cycles=round(weight_cycles),
    )


def changes_pay(kernel: str, device: DeviceFacts, dim: int, products: int, kept: int) -> bool:
    """Whether a kernel that has products of changes takes them: by the size of the cell, never by the batch.

    In the lowest tile, where a product in full waits least for its weights. What `use_plan` says goes first.
    """
    chosen = told(kernel, "triton").get("mixed")
    if chosen is not None:
        return chosen > 0
    columns = max(16, power_of_two(dim))
    rows = max(16, LEAST_ENTRIES // columns)
    sizes = (device, FULL_BESIDE_CHANGES, rows, _resident(tile_warps(rows, columns)), products, dim)
    return _step_cycles(*sizes, kept) < _step_cycles(*sizes, 0)


def _product_cycles(device: DeviceFacts, precision: str, rows: int, products: int) -> tuple[float, float]:
    """Of a tile's products: the arithmetic, and streaming the weights from the second-level cache."""
    if precision == CHANGES:
        return rows * products / device.bfloat16_products, products * 2 / L2_BYTES_A_CYCLE
    rate = device.float32_products if precision == "ieee" else device.split_products
    return rows * products / rate, products * 4 / L2_BYTES_A_CYCLE


def _step_cycles(
    device: DeviceFacts, precision: str, rows: int, resident: int, products: int, dim: int, kept: int
) -> float:
    """Of a step of as many tiles as are resident."""
    full = max(_product_cycles(device, precision, rows, products))
    if not kept:
        return resident * full + STEP_CYCLES
    # For each entry of the state: its change, written and read, and what is kept, read and written.
    moved = rows * dim * (4 + 8 * kept) / L2_BYTES_A_CYCLE
    tile = max(_product_cycles(device, CHANGES, rows, products)) + FULL_ROUNDS * full + moved
    return ROUNDS_A_STEP * (resident * tile + STEP_CYCLES)


@dataclass(frozen=True)
class StepPlan:
    """The launch, or two, of one fused step of an unknown map; it follows from the shape alone, not from the batch."""

    kernel: str
    launches: int
    groups: int  # mixing groups a program holds
    columns: int  # entries of a tile
    tiles: int  # of a group
    programs: int
    warps: int
    registers: int
    slots: int
    batch: int  # partial sums added at once
    floor_bytes: int  # what a step must move: z, f(z), the rings' old and new vectors, the next iterates

    def __str__(self) -> str:
        return "\n".join(f"{f.name:>15}  {getattr(self, f.name)}" for f in fields(self))


def plan_step(*, problems: int, groups: int, entries: int, slots: int, item_bytes: int) -> StepPlan:
    """The plan of a step over [problems, groups, entries]; what `use_plan` says goes before the model."""
    choices = told("anderson_step", "triton")
    columns = max(16, power_of_two(entries))
    whole = groups == 1 and columns <= TILE_ENTRIES
    if not whole:
        columns = min(columns, TILE_ENTRIES // 2)
    held = max(1, TILE_ENTRIES // 2 // columns)
    if slots > 6:  # long histories leave registers for fewer groups' small systems
        held = min(held, max(16, LEAST_ENTRIES // columns))
    tiles = -(-entries // columns)
    vectors = 3 + 2 * slots if slots else 3
    return StepPlan(
        kernel="step_whole" if whole else "step_measure, step_combine",
        launches=1 if whole else 2,
        groups=held,
        columns=columns,
        tiles=tiles,
        programs=-(-problems * groups // held) * tiles,
        warps=choices.get("warps", 4 if held * columns <= TILE_ENTRIES // 2 else 8),
        registers=choices.get("registers", THREAD_REGISTERS),
        slots=slots,
        batch=32,
        floor_bytes=problems * groups * entries * item_bytes * vectors,
    )


def product_precision(dtype: torch.dtype, mixed: bool) -> str:
    """Of a solve's products, as Triton names it; dtype: of its state."""
    # Products of reduced inputs, or for a tolerance that permits them, lose nothing in three TF32 parts.
    return "tf32x3" if mixed or dtype != torch.float32 else "ieee"


def tile_rows(precision: str) -> tuple[int, ...]:
    """Rows that a tile may have so that a row's bits do not depend on which; precision: as Triton names it."""
    # 64 rows would be multiplied by other instructions of the tensor cores than 16, in another order.
    return (16, 32, 64) if precision == "ieee" else (16, 32)


def tile_columns(dim: int) -> int:
    """The state of a solve, padded."""
    return max(16, power_of_two(dim))


def tile_warps(rows: int, columns: int) -> int:
    return 4 if rows * columns <= TILE_ENTRIES // 4 else 8


def _resident(warps: int) -> int:
    """Programs on a multiprocessor at a time."""
    return max(1, REGISTERS // (warps * 32 * 256))


def power_of_two(n: int) -> int:
    """The least that is no less."""
    return 1 << max(n - 1, 0).bit_length()
