"""Data-parallel and sharded training: two processes give the gradients of one."""

import socket
import tempfile
import time

import pytest
import torch
import torch.multiprocessing as multiprocessing
from maps import BACKENDS
from torch import distributed
from workers import single_process, train

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.skipif(
        not distributed.is_available() or not distributed.is_gloo_available(), reason="gloo is not built in"
    ),
]


def finish(processes, seconds=180):
    """Waits for all of them; whoever hangs is ended."""
    deadline = time.monotonic() + seconds
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail(f"the processes did not end within {seconds} s")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_give_the_gradients_of_one(backend, kind):
    expected = single_process(backend)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        processes = multiprocessing.spawn(train, (port, kind, backend, folder), nprocs=2, join=False)
        finish(processes)
        for rank in range(2):
            got = torch.load(f"{folder}/{rank}.pt")
            assert got.keys() == expected.keys()
            for name, gradient in expected.items():
                torch.testing.assert_close(got[name], gradient, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
