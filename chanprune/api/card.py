"""The model card that lies beside a saved network: README.md, in the hub's form."""

from __future__ import annotations

from pathlib import Path

from chanprune.channels import Counts, Example
from chanprune.files.writing import write_text


def write_card(folder: Path, target: str, example: Example, counts: Counts) -> None:
    """Write README.md, unless there is one; what its owner wrote there stays.

    Args:
        folder: Where it goes.
        target: What makes the whole network.
        example: What it is called with.
        counts: Of the compact network.
    """
    path = folder / "README.md"
    if path.exists():
        return
    name = target.rpartition(":")[2]
    shapes = " x ".join(str(size) for size in example.shape)
    write_text(
        path,
        f"""---
library_name: chanprune
tags:
- pruned
# license: of the whole network, to be filled in
---

# {name}, pruned

A compact network, made of `{target}` by taking channels out.

| | |
|---|---|
| parameters | {counts.params:,} |
| multiply-accumulates, one image of {shapes} | {counts.macs:,} |
| accuracy | to be filled in |

```python
import chanprune
from {target.rpartition(":")[0]} import {name}

model = chanprune.load(".", factory={name})  # this folder, or hf://USER/NAME
```

`model.safetensors` holds the tensors, `model.json` the plan: which channels stayed. No code is in
these files; the whole network's is called, and cut.
""",
    )
