from .ops._arguments import Tail

def solve_affine(
    tail: Tail,
    is_double: bool,
    rows: int,
    dim: int,
    z0: int,
    u: int,
    weight: int,
    output_stride: int,
    input_stride: int,
    leak: int,
    scale: int,
    activation: int,
    pieces: int,
    z: int,
    steps: int,
    residual: int,
    status: int,
) -> None: ...
