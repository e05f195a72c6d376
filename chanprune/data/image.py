"""What an image becomes: the one way for training, evaluation, and a finished model's users."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from chanprune.processes.errors import UserError

MAX_PIXELS = 2**27
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
SIXTEEN_BIT_AS_32 = ("PNG", "PPM")  # formats that have no more bits, whatever Pillow makes of them
WITHOUT_RANGE = {"I": "32-bit integers", "F": "floating-point numbers"}


def decode(data: bytes) -> Image.Image:
    """Open an image file as RGB.

    Raises:
        UserError: See `eight_bit`.
        OSError: It is no image, or is damaged; Pillow has other errors for that as well.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about size and odd metadata
        return eight_bit(Image.open(io.BytesIO(data))).convert("RGB")


def eight_bit(image: Image.Image) -> Image.Image:
    """Return an image upright, as RGB, or as L (gray) where it has no colour.

    16-bit gray is scaled to 8 bits. Transparency is dropped: what is behind it shows. Of an
    animation or a document the first picture counts.

    Raises:
        UserError: The image has over `MAX_PIXELS` pixels, values without a known range, or a mode
            that Pillow does not turn into RGB.
    """
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"it has {image.width:,} x {image.height:,} pixels, and {MAX_PIXELS:,} are the most; "
            "make it smaller"
        )
    is_sixteen_bit = image.mode in SIXTEEN_BIT or (
        image.mode == "I" and image.format in SIXTEEN_BIT_AS_32
    )
    if image.mode in WITHOUT_RANGE and not is_sixteen_bit:
        raise UserError(
            f"its pixels are {WITHOUT_RANGE[image.mode]}, whose range is not known; "
            "save it with 8 or 16 bits"
        )
    upright = ImageOps.exif_transpose(image)
    if is_sixteen_bit:
        scaled = (np.asarray(upright).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(scaled.astype(np.uint8))
    try:
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
        return upright if upright.mode == "L" else upright.convert("RGB")
    except ValueError as error:
        raise UserError(f"its mode is {image.mode}; save it as RGB or gray") from error


def pixels(image: Image.Image | Tensor, channels: int) -> Tensor:
    """Return an image as uint8 (C, H, W).

    Args:
        image: Of any mode that `eight_bit` takes, or uint8 (..., C, H, W) with one or three
            channels, whose leading dimensions stay.
        channels: 1 for gray, 3 for RGB.

    Raises:
        UserError: See `eight_bit`.
        TypeError: It is neither, or a tensor of another type or shape.
    """
    if isinstance(image, Image.Image):
        plain = eight_bit(image).convert("L" if channels == 1 else "RGB")
        return (
            torch.from_numpy(np.array(plain)).view(plain.height, plain.width, -1).permute(2, 0, 1)
        )
    if not isinstance(image, Tensor):
        raise TypeError(
            f"an image is a PIL image or a uint8 tensor (C, H, W), not {type(image).__name__}"
        )
    if image.dtype != torch.uint8 or image.ndim < 3 or image.shape[-3] not in {1, 3}:
        raise TypeError(
            "a tensor is an image if it is uint8 (C, H, W) with one or three channels; this one is "
            f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
        )
    if image.shape[-3] == channels:
        return image
    if channels == 3:
        return image.expand(*image.shape[:-3], 3, -1, -1)
    from torchvision.transforms.v2 import functional as F

    gray: Tensor = F.rgb_to_grayscale(image)
    return gray


def fit(images: Tensor, size: int) -> Tensor:
    """Resize images so that the shorter side has `size` pixels, and keep the central square.

    Args:
        images: uint8 (..., C, H, W).
        size: Pixels.

    Returns:
        uint8 (..., C, size, size); an image of that size as it is.
    """
    if images.shape[-2:] == (size, size):
        return images
    from torchvision.transforms.v2 import functional as F

    square: Tensor = F.center_crop(F.resize(images, [size], antialias=True), [size, size])
    return square
