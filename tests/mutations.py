"""Files as nobody should write them: JSON values, bytes and tensors changed by chance."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ODD = (
    *(None, True, "", "x", "\x1b[2J", "a" * 2000, [], {}, [[]], {"x": 1}, [1], ["x"]),
    *(-1, 0, 1, 2, 3, 7, 1000, 10**6, 2**31, 2**63, 10**30, 0.5, 1.5, -0.5, 1e9, 1e308),
    *(float("inf"), float("-inf"), float("nan")),
)


def places(values: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places in nested values, but for the outermost."""
    inside = values.items() if isinstance(values, dict) else ()
    inside = enumerate(values) if isinstance(values, list) else inside
    own = [(*place, key) for key, _ in inside]
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if own else ()
    return own + [deeper for key, value in pairs for deeper in places(value, (*place, key))]


def _of(values: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        values = values[key]
    return values


def mutated_values(values: Any, chance: random.Random) -> Any:
    """Change one value of nested ones, in place, wherever it is as likely at every depth."""
    found = places(values)
    depth = chance.choice(sorted({len(place) for place in found}))
    *outer, key = chance.choice([place for place in found if len(place) == depth])
    holder = _of(values, tuple(outer))
    old = holder[key]
    how = chance.randrange(5)
    if how == 0 and isinstance(holder, dict):
        del holder[key]
    elif how == 1 and isinstance(old, int | float):
        holder[key] = old + chance.choice([-1, 1, 10, 1000])
    elif how == 2 and isinstance(old, list) and old:
        holder[key] = chance.choice([old * 2, old[:-1], old[::-1], [old[0]] * 1000])
    elif how == 3 and isinstance(holder, dict):
        holder[chance.choice([*holder, "odd"])] = old
    else:
        holder[key] = chance.choice(ODD)
    return values


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """Flip a bit, cut, append, or put zeros or chance into it; the beginning is the likeliest."""
    changed = bytearray(content)
    place = chance.randrange(min(len(content), chance.choice([10, 1000, len(content)])) or 1)
    how = chance.randrange(5)
    if how == 0 or not content:
        return bytes(changed[:place])
    if how == 1:
        return content + chance.randbytes(place + 1)
    if how == 2:
        changed[place:] = bytes(len(content) - place)
    elif how == 3:
        changed[place : place + 8] = chance.randbytes(8)
    else:
        changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def mutate_json(path: Path, chance: random.Random) -> None:
    """Change a JSON file's values, seldom its bytes."""
    if chance.random() < 0.1:
        return mutate_bytes(path, chance)
    values = json.loads(path.read_text())
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        values = mutated_values(values, chance)
    path.write_text(json.dumps(values))
    return None


def mutate_bytes(path: Path, chance: random.Random) -> None:
    """Change a file's bytes."""
    path.write_bytes(mutated_bytes(path.read_bytes(), chance))


def mutate_tensors(path: Path, chance: random.Random) -> None:
    """Change a safetensors file: its header's values, or its bytes."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if chance.random() < 0.5:
        return mutate_bytes(path, chance)
    header = mutated_values(json.loads(content[8 : 8 + size]), chance)
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + content[8 + size :])
    return None
