"""chanprune: train convolutional networks whose channels can be taken out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chanprune.pipeline.model_file import extract, load

__version__ = "0.1.0"
__all__ = ["extract", "load"]


def __getattr__(name: str) -> Any:
    """Import what is public, and torch with it, when it is first used."""
    if name in __all__:
        from chanprune.pipeline import model_file

        return getattr(model_file, name)
    raise AttributeError(f"module 'chanprune' has no attribute {name!r}")
