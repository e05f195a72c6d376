"""Short names for what is described by values: the same values, the same name."""

import hashlib
import json
from typing import Any


def digest(values: Any, length: int) -> str:
    """Return the first hexadecimal digits of a hash of values that JSON can hold.

    Args:
        values: Whose hash; the order of keys does not matter, that of lists does.
        length: How many digits.
    """
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
