"""What the processes of test_distributed.py run: a module of its own, so that they can import it by name."""

from __future__ import annotations

import os

import torch
from cells import make_cell
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import attractor_kernels as ak


class Tanh(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z, x):
        return torch.tanh(0.7 * self.inner(z) + x)


class Net(nn.Module):
    """A fixed point of a plain module, then one of a fused cell."""

    def __init__(self, backend):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(6, 6)
        self.plain = ak.nn.FixedPoint(Tanh(self.inner), rtol=1e-10, max_steps=200, backend=backend)
        self.fused = ak.nn.FixedPoint(
            make_cell("affine-tanh", 8, 6, torch.float32), rtol=1e-10, max_steps=200, backend=backend
        )
        self.double()

    def forward(self, x):
        return self.fused(self.plain(x))


def batch():
    return torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def single_process(backend):
    net = Net(backend)
    net(batch()).pow(2).mean().backward()
    return {name: p.grad for name, p in net.named_parameters()}


def train(rank, port, kind, backend, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    net = Net(backend)
    names = [name for name, _ in net.named_parameters()]
    run = DistributedDataParallel(net) if kind == "ddp" else fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    run(batch()[4 * rank : 4 * rank + 4]).pow(2).mean().backward()
    grads = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in net.parameters()]
    torch.save(dict(zip(names, grads, strict=True)), f"{folder}/{rank}.pt")
    distributed.barrier()
    # No teardown: a process group that dies with a DDP module waits, holding the interpreter's lock, for threads of
    # gloo's that may be waiting for that lock (seen with torch 2.13).
    os._exit(0)
