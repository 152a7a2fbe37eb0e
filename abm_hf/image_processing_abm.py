"""ABMImageProcessor: any picture of a handwritten formula to what the network was trained on, ink bright on dark."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import TensorType

from .crohme_style_abm import StyledImage, to_crohme_style
from .image_loading_abm import ImageInputError, name_of, read_picture, split_batch

# Standard options of image processors that have no meaning here: accepting them silently would mislead.
_WITHOUT_EFFECT = (
    "do_convert_rgb",
    "do_resize",
    "size",
    "default_to_square",
    "crop_size",
    "resample",
    "image_mean",
    "image_std",
    "do_center_crop",
    "image_seq_length",
)


class ABMImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict in disguise
    """
    Options of [`ABMImageProcessor`] beyond those of every image processor.

    component_height (`float`, *optional*, defaults to 29):
        Height (px) to which the connected components of the ink are scaled: that of the field's images.
    margin (`int`, *optional*, defaults to 12):
        Paper (px) above and to the left of the ink; one less below and to the right, as in the field's images.
    max_pixels (`int`, *optional*, defaults to 400000):
        Area (px) of a processed picture at most: larger formulas are scaled down to it. The largest image of the
        field has 380,000.
    min_side (`int`, *optional*, defaults to 8):
        Pictures narrower or lower than this (px) are refused.
    max_megapixels (`float`, *optional*, defaults to 50):
        Larger pictures are refused, files before they are decoded.
    pad_to_multiple_of (`tuple[int, int]`, *optional*, defaults to `(32, 64)`):
        Height and width (px) of a padded batch are rounded up to multiples of these, so that shapes recur and
        compiled kernels are used again.
    return_intermediate (`bool`, *optional*, defaults to `False`):
        Whether to return, under `"intermediate"`, what was made of each picture: a list of dictionaries of PIL images
        `"read"` (upright and opaque), `"ink"` (what was found, in the picture's size; not with
        `do_normalize=False`, nor for an image in the field's form) and `"processed"` (what the model sees, without
        padding).
    """

    component_height: float | int
    margin: int
    max_pixels: int
    min_side: int
    max_megapixels: float | int
    pad_to_multiple_of: tuple[int, ...] | list[int]
    return_intermediate: bool


def _steps_as_pictures(picture: StyledImage) -> dict[str, Image.Image]:
    """Ink dark on light as on paper, except for what the model sees."""
    steps = {"read": Image.fromarray(picture.read)}
    if picture.ink is not None:
        steps["ink"] = Image.fromarray(255 - 255 * picture.ink)
    return steps | {"processed": Image.fromarray(picture.image)}


class ABMImageProcessor(PilBackend):
    r"""
    Image processor of ABM.

    Reads any picture (see below), finds the ink whatever its polarity and the light, takes the lines of ruled paper
    away, crops to the ink, scales it to the size of the field's images, brings its strokes to their width, and puts
    it, bright on dark, into a margin. **A picture that is in the field's form already passes bit for bit**, light on
    dark or dark on light.

    Args:
        do_normalize (`bool`, defaults to `True`):
            Whether to do all that. `False` takes the brightness of the pixels as it is: ink must be bright on dark.
        do_rescale (`bool`, defaults to `True`), rescale_factor (`float`, defaults to 1/255):
            Whether and by what to multiply the 8-bit result.
        do_pad (`bool`, defaults to `True`):
            Whether to pad the pictures of a batch to one size. `False` returns lists of arrays.
        pad_size (`dict[str, int]`, *optional*):
            The `height` and `width` (px) to pad to, in place of the largest picture's, rounded up.
        kwargs:
            See [`ABMImageProcessorKwargs`].

    Pictures may be paths, bytes of image files, PIL images of any mode, NumPy arrays or torch tensors of shape (H, W),
    (H, W, C) or (C, H, W) (`input_data_format` says which where both could be), lists of these, or arrays
    (B, C, H, W).

    Returns:
        [`BatchFeature`] with `pixel_values` (`torch.float32` of shape `(B, 1, H, W)`, 0..1), `pixel_mask`
        (`torch.int64` of shape `(B, H, W)`, 1 for pixels of the picture, 0 for padding) and, if asked for,
        `intermediate`. NumPy arrays with `return_tensors="np"`; lists of one for each picture with `do_pad=False`.

    Raises:
        ImageInputError: a picture is missing, unreadable, no image, too large, under `min_side`, or without ink. The
            error says in one line which and why.
        TypeError: an option that has no effect here is given, or does not exist.
    """

    valid_kwargs = ABMImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012 (transformers reads it as a plain list)

    do_normalize = True
    do_rescale = True
    do_pad = True
    component_height = 29.0
    margin = 12
    max_pixels = 400_000
    min_side = 8
    max_megapixels = 50.0
    pad_to_multiple_of = (32, 64)
    return_intermediate = False
    default_to_square = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Process one picture or many: see the class. Options given here hold for this call."""
        refuse_unknown(kwargs, self._valid_kwargs_names)
        kwargs.setdefault("return_tensors", "pt")
        return super().preprocess(images, *args, **kwargs)

    def process_image(self, image: Any, max_megapixels: float = 50.0, **kwargs: Any) -> np.ndarray:
        """Read one picture: `uint8` of shape (H, W), or (H, W, 3) for colour."""
        data_format = kwargs.get("input_data_format")
        return read_picture(image, max_megapixels, getattr(data_format, "value", data_format))

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """As the parent, and the same whether set in code or read from JSON."""
        kwargs = super()._standardize_kwargs(**kwargs)
        kwargs["pad_to_multiple_of"] = tuple(kwargs["pad_to_multiple_of"])
        return kwargs

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        """Refuse options without effect, and values out of range."""
        if given := [name for name in _WITHOUT_EFFECT if kwargs.get(name) is not None]:
            raise TypeError(f"{', '.join(given)} has no effect on ABMImageProcessor: leave it out.")
        bounds = {"component_height": 4, "margin": 1, "max_pixels": 1024, "min_side": 1, "max_megapixels": 1e-6}
        for name, least in bounds.items():
            if kwargs[name] < least:
                raise ValueError(f"{name} must be at least {least}, not {kwargs[name]}.")
        if (2 * kwargs["margin"] + 8) ** 2 > kwargs["max_pixels"]:
            raise ValueError(f"margin {kwargs['margin']} leaves no room for ink within max_pixels: raise the latter.")
        multiples = kwargs["pad_to_multiple_of"]
        if len(multiples) != 2 or min(multiples) < 1:
            raise ValueError(f"pad_to_multiple_of must be two positive numbers (height, width), not {multiples}.")

    def _preprocess_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Read and process picture by picture, so that an error can say which one it is about."""
        pictures = split_batch(images)
        processed = []
        for index, picture in enumerate(pictures):
            try:
                processed.append(self._process_one(picture, **kwargs))
            except ImageInputError as error:
                place = f"picture {index}" if len(pictures) > 1 else None
                raise ImageInputError(error.reason, name_of(picture) or place) from error
        return self._collate(processed, **kwargs)

    def _process_one(
        self,
        picture: Any,
        do_normalize: bool,
        min_side: int,
        component_height: float,
        margin: int,
        max_pixels: int,
        **kwargs: Any,
    ) -> StyledImage:
        read = self.process_image(picture, **kwargs)
        return to_crohme_style(read, do_normalize, min_side, component_height, margin, max_pixels)

    def _collate(
        self,
        processed: Sequence[StyledImage],
        do_rescale: bool,
        rescale_factor: float,
        do_pad: bool,
        return_intermediate: bool,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        """Values and masks of all pictures, padded below and to the right to one size."""
        factor = np.float32(rescale_factor if do_rescale else 1)
        values = [item.image[None].astype(np.float32) * factor for item in processed]  # (1, H, W)
        masks = [np.ones(item.image.shape, np.int64) for item in processed]
        if do_pad:
            values, masks = self.pad(values, pad_size=_padded_size(values, **kwargs), return_mask=True)
        convert = torch.from_numpy if return_tensors in ("pt", TensorType.PYTORCH) else np.asarray
        data: dict[str, Any] = {
            "pixel_values": [convert(value) for value in values],
            "pixel_mask": [convert(mask) for mask in masks],
        }
        if do_pad:
            stack = torch.stack if convert is torch.from_numpy else np.stack
            data = {name: stack(arrays) for name, arrays in data.items()}
        if return_intermediate:
            data["intermediate"] = [_steps_as_pictures(item) for item in processed]
        return BatchFeature(data)


def _padded_size(
    values: Sequence[np.ndarray], pad_size: SizeDict | None, pad_to_multiple_of: Sequence[int], **kwargs: Any
) -> SizeDict:
    """The size asked for, or that of the largest picture, rounded up."""
    if pad_size is not None:
        return pad_size
    sides = (max(value.shape[axis] for value in values) for axis in (1, 2))
    height, width = (-(-side // multiple) * multiple for side, multiple in zip(sides, pad_to_multiple_of, strict=True))
    return SizeDict(height=height, width=width)


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """
    Raise a `TypeError` that names each unknown option and the known one that it looks like.

    The library only warns of options that it does not know, so that a misspelt one goes unnoticed.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise TypeError(f"Unknown option {name!r}" + (f": did you mean {near[0]!r}?" if near else "."))


__all__ = ["ABMImageProcessor", "ABMImageProcessorKwargs", "ImageInputError"]
