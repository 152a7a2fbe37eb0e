"""Any picture that a user may hand over, to upright, opaque 8-bit pixels; all else, to one error with a reason."""

import base64
import binascii
import io
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What may be one picture. Lists, and arrays of four dimensions, hold several.
ImageSource = Any  # str | os.PathLike | bytes | PIL.Image.Image | np.ndarray | torch.Tensor


class ImageInputError(ValueError):
    """
    A picture cannot be used.

    Attributes:
        reason (`str`): one line that says why, without the picture's name.
        name (`str`, *optional*): the file, or the place in a list, where that is known.
    """

    def __init__(self, reason: str, name: str | None = None) -> None:
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason
        self.name = name


class ImageInputWarning(UserWarning):
    """A picture is used, but not all of it."""


def holds_several(images: Any) -> bool:
    """
    Whether this is a collection of pictures and not one.

    Collections are lists, tuples, columns of data sets and tables, generators, and arrays of four axes, a picture for
    each entry of the first, or of paths.
    """
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Mapping | Image.Image):
        return False
    axes = getattr(images, "ndim", 0)  # of arrays, and of tensors of any library
    if axes > 1 or hasattr(images, "detach"):
        return axes == 4
    if isinstance(images, np.ndarray):
        return images.dtype.kind in "OSU"
    if hasattr(images, "read"):
        return False
    # A data set of torch has no iterator, but a length and items.
    return hasattr(images, "__iter__") or (hasattr(images, "__len__") and hasattr(images, "__getitem__"))


def split_batch(images: Any) -> list[ImageSource]:
    """One picture, or a nested collection of pictures (see [`holds_several`]), to a flat list of pictures."""
    if not holds_several(images):
        return [images]
    items = images if hasattr(images, "__iter__") else (images[index] for index in range(len(images)))
    pictures = [picture for item in items for picture in split_batch(item)]
    if not pictures:
        raise ImageInputError("there is no picture in an empty list")
    return pictures


def name_of(source: ImageSource) -> str | None:
    """What an error calls a picture by: its path, or the beginning of its `data:` address."""
    if isinstance(source, str) and source.startswith("data:"):
        return f"{source[:30]}…"
    return str(source) if isinstance(source, str | os.PathLike) else None


def read_picture(source: ImageSource, max_megapixels: float, data_format: str | None = None) -> np.ndarray:
    """
    Read one picture.

    Args:
        source: a path, the bytes of an image file or an open one, its `data:` address, a PIL image, a mapping with
            `bytes` or `path` as data sets store pictures, or a NumPy array or torch tensor of shape (H, W), (H, W, C)
            or (C, H, W) with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels, of booleans, of integers in
            0..255 or 0..65535, or of floats in 0..1, -1..1 or 0..255, which resizing may have overshot.
        max_megapixels (`float`): larger pictures are refused; for files, before any pixel is decoded.
        data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`, where the shape leaves it open.

    Returns:
        `np.ndarray` of `uint8`, shape (H, W) for grey pictures and (H, W, 3) for colour: upright and opaque.

    Raises:
        ImageInputError: the picture is missing, unreadable, no image, too large, or an array of no such kind.
    """
    if isinstance(source, Mapping):
        source = _stored(source)
    if hasattr(source, "read"):
        source = source.read()
    if isinstance(source, memoryview):
        source = bytes(source)
    if isinstance(source, str | os.PathLike | bytes | bytearray):
        return _from_pillow(_open(source, max_megapixels), max_megapixels)
    if isinstance(source, Image.Image):
        return _from_pillow(source, max_megapixels)
    if hasattr(source, "detach") and hasattr(source, "cpu"):  # a torch tensor; NumPy knows no bfloat16
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return _from_array(np.asarray(source), max_megapixels, data_format)
    raise ImageInputError(f"{type(source).__name__} is no picture: pass a path, bytes, PIL image, array or tensor")


def _stored(row: Mapping[str, Any]) -> ImageSource:
    """The picture in a mapping of `bytes` and `path`."""
    for key in ("bytes", "path"):
        if row.get(key) is not None:
            return row[key]
    columns = ", ".join(map(str, row)) or "none"
    raise ImageInputError(f"a row with the columns {columns} is no picture: pass the one that holds it, row['image']")


def _open(source: str | os.PathLike | bytes | bytearray, max_megapixels: float) -> Image.Image:
    """Read a file's header, check its size, then decode its pixels."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ImageInputError("is an address: download the picture and pass its path", source)
    name, data = name_of(source), b""
    try:
        data = bytes(_bytes_of(source))
        with io.BytesIO(data) as stream, warnings.catch_warnings():
            # Pillow warns at 89 megapixels, where ours has an error to say.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(stream)
            _check_size(picture.size, max_megapixels)
            if picture.format == "TIFF" and (pages := getattr(picture, "n_frames", 1)) > 1:
                said = f"{pages} pages, of which the first is read: pass the others one by one"
                warnings.warn(ImageInputWarning(f"{name}: {said}" if name else said), stacklevel=4)
            picture.load()
    except ImageInputError as error:
        raise ImageInputError(error.reason, name) from None
    except Image.DecompressionBombError as error:
        raise ImageInputError(f"over {max_megapixels:g} megapixels: scale it down", name) from error
    except UnidentifiedImageError as error:
        raise ImageInputError(f"not an image of a kind that can be read{_hint(data)}", name) from error
    except OSError as error:
        # Errors of the system (no such file, a folder, no permission) bring a text; those of decoders, a sentence.
        raise ImageInputError(error.strerror or f"damaged image file ({error})", name) from error
    except (
        SyntaxError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        OverflowError,
        MemoryError,
        RuntimeError,
    ) as error:
        # Decoders raise what they please on damaged files; Pillow documents only some of it.
        raise ImageInputError(f"damaged image file ({error or type(error).__name__})", name) from error
    return picture


def _bytes_of(source: str | os.PathLike | bytes | bytearray) -> bytes | bytearray:
    if isinstance(source, bytes | bytearray):
        return source
    if not (isinstance(source, str) and source.startswith("data:")):
        path = Path(source)
        return (path.expanduser() if path.parts[:1] == ("~",) else path).read_bytes()
    kind, _, text = source.partition(",")
    if not kind.endswith(";base64"):
        raise ImageInputError("a data: address is read where it is base64: data:image/png;base64,…")
    try:
        return base64.b64decode(text)
    except binascii.Error as error:
        raise ImageInputError(f"damaged base64 ({error})") from error


def _hint(data: bytes) -> str:
    """What a file that is no picture is instead, and what to do, for what people try most."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"%pdf"):
        return ": a PDF, export its page as PNG"
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif"):
        return ": a HEIC picture, save it as PNG or JPEG"
    if b"<svg" in head:
        return ": an SVG, export it as PNG"
    if re.search(rb"<(\w+:)?ink[\s>]", head):
        return ": InkML, which abm_hf.recognize and abm_hf.read_inkml read"
    if head.startswith((b"<!doctype html", b"<html")):
        return ": a web page, download the picture that it shows"
    if head.startswith(b"version https://git-lfs"):
        return ": a pointer of Git LFS, fetch the file with git lfs pull"
    return ""


def _check_size(size: tuple[int, int], max_megapixels: float) -> None:
    width, height = size
    if width * height > max_megapixels * 1e6:
        raise ImageInputError(f"{width} x {height} px is over {max_megapixels:g} megapixels: scale it down")


def _from_pillow(picture: Image.Image, max_megapixels: float) -> np.ndarray:
    """A PIL image of any mode."""
    _check_size(picture.size, max_megapixels)
    try:
        picture = _upright(picture)
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            return _to_bytes(np.asarray(picture))
        if picture.has_transparency_data:
            return _flatten(np.asarray(picture.convert("RGBA")))
        if picture.mode in ("1", "L"):
            return np.asarray(picture.convert("L"))
        return np.asarray(picture.convert("RGB"))
    except ImageInputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # a PIL image decodes late
        raise ImageInputError(f"damaged image ({error})") from error


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF data says."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # broken EXIF data, which fails in many ways, is no reason to refuse a picture
        return picture


def _from_array(array: np.ndarray, max_megapixels: float, data_format: str | None) -> np.ndarray:
    """An array of shape (H, W), (H, W, C) or (C, H, W)."""
    if array.ndim == 3:
        first = array.shape[-1] not in (1, 2, 3, 4) if data_format is None else data_format == "channels_first"
        array = np.moveaxis(array, 0, -1) if first else array
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4)) or array.size == 0:
        raise ImageInputError(f"an array of shape {array.shape} is no picture: pass (H, W), (H, W, C) or (C, H, W)")
    _check_size((array.shape[1], array.shape[0]), max_megapixels)
    array = _to_bytes(array)
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if channels == 1:
        return array.reshape(array.shape[:2])
    if channels == 3:
        return array
    return _flatten(array if channels == 4 else array[..., [0, 0, 0, 1]])


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """Values of any type to `uint8`, by the range that they can only mean."""
    if array.dtype.kind not in "buif":
        raise ImageInputError(f"an array of {array.dtype} is no picture")
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageInputError("the values are not all finite")
    if array.dtype.kind == "f" and (meant := _range_meant(low, high)) is not None:
        bottom, top = meant
        scale = np.float32(255 / (top - bottom))
        return np.rint((np.clip(array, bottom, top) - np.float32(bottom)) * scale).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ImageInputError(
            f"values from {low:g} to {high:g}: pass 0..1, 0..255 or 0..65535, not normalised ones; "
            "(a - a.min()) / (a.max() - a.min()) makes an array of them that is read"
        )
    if high <= 1:  # booleans, or a mask of zeros and ones
        return np.rint(array * np.float32(255)).astype(np.uint8)
    if high > 255:  # 16 bits, or the 12 that scanners and cameras fill of them
        return np.rint(array * np.float32(255 / (65535 if high > 4095 else 4095))).astype(np.uint8)
    return array if array.dtype == np.uint8 else np.rint(array).astype(np.uint8)


def _range_meant(low: float, high: float) -> tuple[float, float] | None:
    """The range that floats from `low` to `high` fill, or overshoot by a quarter, as resizing does at edges."""
    if low >= -0.25 and high <= 1.25:
        return 0.0, 1.0
    if low >= -1.5 and high <= 1.5:
        return -1.0, 1.0
    # Standardised pictures go from a little below zero to a few units.
    return (0.0, 255.0) if low >= -64 and 64 < high <= 319 else None


def _flatten(rgba: np.ndarray) -> np.ndarray:
    """
    Lay a picture with transparency on the paper on which its ink shows.

    What is see-through is paper. If little is opaque, that is the ink, and the paper is the opposite of it: white
    under dark ink, black under light ink. If most is opaque, the paper is already there, and goes on.
    """
    colour, alpha = rgba[..., :3].astype(np.float32), rgba[..., 3:].astype(np.float32) / 255
    visible = alpha[..., 0] > 0.5
    if not visible.any():
        visible = alpha[..., 0] > 0
    if not visible.any():
        return np.zeros(rgba.shape[:2], np.uint8)
    paper = np.median(colour[visible], axis=0)
    if visible.mean() <= 0.5:
        paper = np.full(3, 255.0 if colour[visible].mean() < 128 else 0.0)
    return np.rint(colour * alpha + paper * (1 - alpha)).astype(np.uint8)
