"""A batch of pictures at another size: what a network misreads at one it may read at another."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resized(pixel_values: Tensor, pixel_mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor | None]:
    """Pictures scaled by one factor, each as it would be alone, whatever it is padded to.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(B, 1, H, W)`), pixel_mask (`torch.Tensor` of shape `(B, H, W)`,
            *optional*): as for the model; paper is 0, in the pictures and around them.
        scale (`float`): greater than 1 enlarges.

    Returns:
        Values and a `bool` mask of round(H · scale) × round(W · scale) pixels, bilinear; what was given where the
        scale is 1.
    """
    if scale == 1:
        return pixel_values, pixel_mask
    if pixel_mask is None:
        pixel_mask = pixel_values.new_ones(len(pixel_values), *pixel_values.shape[2:], dtype=torch.bool)
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in pixel_mask.shape[1:])
    # A margin of paper, so that the last pixel is interpolated at the edge of a batch as it is inside of one.
    margin = math.ceil(1 / scale) + 1
    values = pixel_values * (pixel_mask != 0)[:, None].to(pixel_values.dtype)
    values = F.interpolate(
        F.pad(values, [0, margin, 0, margin]), scale_factor=scale, mode="bilinear", recompute_scale_factor=False
    )[..., :height, :width]
    rows, columns = (
        torch.arange(side, device=pixel_mask.device)
        # In double precision, as the sizes above: halves are rounded up in both.
        < ((pixel_mask != 0).any(2 - axis).sum(1).double() * scale + 0.5).floor().clamp(min=1)[:, None]
        for axis, side in enumerate((height, width))
    )
    mask = rows[:, :, None] & columns[:, None]
    return values * mask[:, None], mask


__all__ = ["resized"]
