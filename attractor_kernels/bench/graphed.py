"""The naive loop as one CUDA graph, in eager torch and with a compiled step: the host launches once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cases import Problem
from .contenders import Contender, Runner, unrolled, without_gradients

Call = Callable[[], Tensor]

_WARM_UPS = 3


def cuda_graph(call: Call) -> Call:
    """A function that replays what `call` launches, and returns the tensor that it returned."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def graphed(capture: Callable[[Call], Call], compile_step: Callable[[Any], Any] | None = None) -> Contender:
    """capture: `cuda_graph`, or a stand-in. compile_step: makes a faster map of the problem's; None: eager torch."""

    def build(problem: Problem, which: str, steps: int) -> Runner:
        with torch.no_grad():
            held = {**problem.parameters, "u": problem.u}
            replay = capture(unrolled(problem, held, steps, compile_step))
        runner = without_gradients(replay)
        runner.facts = {"steps_max": steps}
        return runner

    name = "graphed" if compile_step is None else "compiled graphed"
    return Contender(name, f"the naive loop as one CUDA graph, {name}", ("forward",), build)
