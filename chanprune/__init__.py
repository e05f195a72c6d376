"""chanprune: train convolutional networks whose channels can be taken out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chanprune.pipeline.model_file import load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import `load`, and torch with it, when it is first used."""
    if name == "load":
        from chanprune.pipeline.model_file import load

        return load
    raise AttributeError(f"module 'chanprune' has no attribute {name!r}")
