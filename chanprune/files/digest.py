"""Short names for what is described by values: the same values, the same name."""

import hashlib
import json
from pathlib import Path
from typing import Any


def digest(values: Any, length: int) -> str:
    """Return the first hexadecimal digits of a hash of values that JSON can hold.

    Args:
        values: Whose hash; the order of keys does not matter, that of lists does.
        length: How many digits.
    """
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
