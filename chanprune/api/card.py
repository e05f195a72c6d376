"""The model card that lies beside a saved network: README.md, in the hub's form."""

from __future__ import annotations

from pathlib import Path

from chanprune.channels import Counts
from chanprune.files.writing import write_text

CARD = """---
library_name: chanprune
tags:
- pruned
# license: of the whole network, to be filled in
---

# {title}

A compact network, made{of} by taking channels out.

| | |
|---|---|
| parameters | {params:,} |
| multiply-accumulates, one input of {shape} | {macs:,} |
| accuracy | to be filled in |

```python
import chanprune
{imports}
model = chanprune.load({arguments})  # this folder, or hf://USER/NAME
```

`model.safetensors` holds the tensors, `model.json` the plan: which channels stayed. No code is in
these files; the code of the whole network is called, and what comes out is cut.
"""


def write_card(folder: Path, target: str, shape: str, counts: Counts) -> None:
    """Write README.md, unless there is one; what its owner wrote there stays.

    Args:
        folder: Where it goes.
        target: What makes the whole network, "module:name"; "" if chanprune does.
        shape: Of one input.
        counts: Of the compact network.
    """
    path = folder / "README.md"
    if path.exists():
        return
    module, _, name = target.rpartition(":")
    write_text(
        path,
        CARD.format(
            title=f"{name}, pruned" if name else "A pruned network",
            of=f" of `{target}`" if target else "",
            params=counts.params,
            macs=counts.macs,
            shape=shape,
            imports=f"from {module} import {name.partition('.')[0]}\n" if target else "",
            arguments=f'".", factory={name}' if target else '"."',
        ),
    )
