"""Photographs and scans to the field's image form, for sources that have pictures and no ink."""

from pathlib import Path

import numpy as np

from ..crohme_style_abm import is_crohme_style, redraw
from ..image_loading_abm import ImageInputError, read_picture
from ..ink_extraction_abm import find_ink, to_grey
from .source import PrepareError, SkipEntry

# The image processor's defaults: what a model is trained on must be what it is given later.
_COMPONENT_HEIGHT = 29.0
_MARGIN = 12
_MAX_PIXELS = 400_000
_MAX_MEGAPIXELS = 50.0

SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".JPG", ".JPEG", ".PNG", ".BMP")


def read_crohme_style(path: Path) -> np.ndarray:
    """A picture of handwriting in the field's form, uint8 (H, W): as the image processor gives it to the model.

    Raises:
        SkipEntry: It is not there, cannot be decoded, or shows no ink.
    """
    try:
        return to_crohme_style(read_picture(path, _MAX_MEGAPIXELS))
    except ImageInputError as error:
        raise SkipEntry("image", error.reason) from error


def to_crohme_style(picture: np.ndarray) -> np.ndarray:
    """A picture, uint8 (H, W) or (H, W, 3), in the field's form; one in it already stays as it is.

    Raises:
        ImageInputError: It shows no ink.
    """
    grey = to_grey(picture)
    for image in (grey, 255 - grey):
        if is_crohme_style(image, _MARGIN, _MAX_PIXELS):
            return image
    return redraw(find_ink(picture), _COMPONENT_HEIGHT, _MARGIN, _MAX_PIXELS)


def inside(folder: Path, name: str) -> Path:
    """The file that a metadata file names, if it is in its folder; `sub\\a.png` of Windows is one too.

    Raises:
        PrepareError: The name leads out of the folder: metadata from a stranger must not read other files.
    """
    if "\\" in name and not (folder / name).is_file():
        name = name.replace("\\", "/")
    path = (folder / name).resolve()
    if not name or "\0" in name or not path.is_relative_to(folder.resolve()):
        raise PrepareError(f"{name!r} leads out of {folder}: a name must stay inside the folder it is in")
    return path
