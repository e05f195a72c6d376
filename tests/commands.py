"""Run the commands as a user does, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import torch

from tests.faults import Fault

TINY = (
    *("model=vgg11", "model.width=0.0625", "dataset.image_size=16"),
    *("train.epochs=1", "finetune.epochs=1", "device=cpu"),
)
SLOW_IMPORTS = (
    "torch._dynamo",
    "sklearn.datasets",
    "chanprune.pipeline.run",
    "chanprune.config.control",
)
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([*SLOW_IMPORTS, __name__])


def train(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m chanprune.train`, as `call` does."""
    return call("chanprune.train", *arguments, cwd=cwd, **options)


def call(
    *arguments: str, cwd: Path, fault: Fault | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m` in a fork of a process that has imported PyTorch, which saves seconds."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as error:
        streams = [DupFd(file.fileno()) for file in (output, error)]
        process = _forks.Process(target=_become, args=(arguments, cwd, environment, streams, fault))
        process.start()
        process.join()
        said = []
        for file in (output, error):
            file.seek(0)
            said.append(file.read().decode())
        assert process.exitcode is not None
        return subprocess.CompletedProcess(arguments, process.exitcode, *said)


def call_afresh(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m` in a new interpreter, for what depends on how one begins."""
    process = start(*arguments, cwd=cwd, **environment)
    said = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, *said)


def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `python -m` in a new interpreter, for what is to be stopped on the way."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _become(
    arguments: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    streams: Sequence[Any],
    fault: Fault | None,
) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.detach(), number)
    os.chdir(cwd)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv[1:] = arguments[1:]
    if fault:
        fault.arm()
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    finally:
        if fault:
            fault.tell()


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fork of its own, for its memory to be measured; return its result."""
    receiver, sender = _forks.Pipe(duplex=False)
    process = _forks.Process(target=_tell, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = RuntimeError("the child ended without a word")
    process.join()
    if isinstance(result, str):
        raise AssertionError(result)
    if isinstance(result, Exception):
        raise result
    return result


def _tell(sender: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    try:
        sender.send(function(*arguments))
    except BaseException:
        sender.send(traceback.format_exc())
