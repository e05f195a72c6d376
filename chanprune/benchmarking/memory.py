"""The memory that a forward pass takes, beside the network: at most, of the whole process."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from chanprune.benchmarking.twins import Twins
from chanprune.benchmarking.variants import Stand
from chanprune.runtimes import Call

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
AGAIN = 3  # times; the first may bring code into memory
PEAK_AGAIN = "5"  # lets the system note the peak anew

Where = tuple[Path, str | None, str | None]  # as `Twins` takes it


def peaks(where: Where, name: str, batches: Sequence[int], device: str) -> dict[int, int] | None:
    """Measure a variant in a process of its own, with one thread.

    Args:
        where: The networks.
        name: Of `VARIANTS`.
        batches: Numbers of images.
        device: Where it computes.

    Returns:
        Batch -> bytes, on top of what the process held with the network loaded; on a GPU PyTorch's
        tensors alone. None where the system does not tell.
    """
    if device == "cpu" and not RESET.exists():
        return None
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["torch._dynamo", __name__])
    receiver, sender = forks.Pipe(duplex=False)
    child = forks.Process(target=_tell, args=(sender, where, name, sorted(batches), device))
    child.start()
    sender.close()
    try:
        found: dict[int, int] = receiver.recv()
    except EOFError:
        return None  # it was killed, as for want of memory
    finally:
        child.join()
    return found


def _tell(sender: Connection, where: Where, name: str, batches: Sequence[int], device: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        stand = Stand(Twins(*where), torch.device(device), Path(folder))
        sender.send({batch: _peak(stand, name, batch) for batch in batches})


def _peak(stand: Stand, name: str, batch: int) -> int:
    """Return what a call takes at most, in bytes."""
    images = stand.images(batch)
    on_gpu = stand.device.type == "cuda"
    taken = []
    for _ in range(AGAIN):
        call = stand.call(name, images, threads=1)  # anew, as ONNX Runtime keeps what it had
        taken.append(_on_gpu(call, stand.device) if on_gpu else _resident(call))
    return min(taken)


def _on_gpu(call: Call, device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident(call: Call) -> int:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else the call takes what earlier ones gave back
    RESET.write_text(PEAK_AGAIN)
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    """Return an entry of the process's status, in bytes."""
    lines = STATUS.read_text("utf-8").splitlines()
    (found,) = (line.split() for line in lines if line.startswith(f"{key}:"))
    return int(found[1]) * 1024
