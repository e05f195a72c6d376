"""Where a result comes from: versions and commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from chanprune import __version__


def describe_environment() -> dict[str, str | int]:
    """Return the versions, the number of threads and, in a checkout, the git commit."""
    described: dict[str, str | int] = {
        "chanprune": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),
        "threads": torch.get_num_threads(),
    }
    commit = _commit()
    return {**described, "commit": commit} if commit else described


def _commit() -> str:
    """Return the commit of the checkout, "+" behind it if files were changed; "" outside one."""
    package = Path(__file__).resolve().parent
    if not (package.parents[1] / ".git").exists():
        return ""
    git = ["git", "-C", str(package)]
    try:
        asked = subprocess.run(
            [*git, "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return asked.stdout.strip()
