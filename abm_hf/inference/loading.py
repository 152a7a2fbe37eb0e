"""The recognizer for a checkpoint and a device: ONNX Runtime on CPUs, PyTorch on GPUs and where it is asked for."""

import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..pretrained import CheckpointError
from .base import BaseRecognizer, Recognition, are_several

if TYPE_CHECKING:
    import torch

Engine = Literal["auto", "onnx", "torch"]


def load_recognizer(
    model: str | Path | None = None, device: "str | torch.device | None" = None, engine: Engine = "auto"
) -> BaseRecognizer:
    """Loads a checkpoint for recognition.

    Args:
        model: a directory, a Hub id, or the name of a packaged checkpoint; the packaged default if `None`.
        device: such as `"cpu"` or `"cuda:0"`; a GPU if there is one, by default.
        engine: `"onnx"`, which needs the checkpoint's folder `onnx`; `"torch"`; or `"auto"`: ONNX Runtime on a CPU
            where the checkpoint has that folder, else PyTorch.

    Returns:
        [`ABMOnnxModel`] or [`Recognizer`].

    Raises:
        CheckpointError: if there is no such checkpoint, or with `engine="onnx"` no ONNX files that belong to it.
        OSError, ValueError: if it cannot be loaded, or the engine or device does not exist.
    """
    if choose_engine(model, device, engine) == "onnx":
        from .onnx_recognizer import ABMOnnxModel

        return ABMOnnxModel(model, str(device) if device else None)
    from .recognizer import Recognizer

    return Recognizer(model, device)


def choose_engine(
    model: str | Path | None, device: "str | torch.device | None", engine: Engine
) -> Literal["onnx", "torch"]:
    """What [`load_recognizer`] takes for these arguments, which are the same."""
    if engine not in ("auto", "onnx", "torch"):
        raise ValueError(f"engine must be auto, onnx or torch, not {engine!r}")
    if engine != "auto":
        return engine
    return "onnx" if _on_cpu(device) and _has_onnx(model) else "torch"


def recognize(
    images: Any,
    *,
    model: str | Path | None = None,
    device: "str | torch.device | None" = None,
    engine: Engine = "auto",
    **options: Any,
) -> Recognition | list[Recognition]:
    """Recognizes images or ink of handwritten formulas with the packaged checkpoint, or another.

    Args:
        images: a path, PIL image, array, tensor, bytes or [`Ink`]; or a list of them.
        model, device, engine: see [`load_recognizer`]. The model is loaded once and kept.
        options: see [`Recognizer.__call__`].

    Returns:
        A [`Recognition`] for a single image; a list with one for each, in order, for several.

    Example:

    ```python
    >>> import abm_hf

    >>> abm_hf.recognize("formula.png").latex
    'x^{2}+1'
    ```
    """
    loaded = _loaded(str(model) if model is not None else None, str(device) if device else None, engine)
    results = loaded(images, **options)
    return results if are_several(images) else results[0]


@lru_cache(maxsize=2)
def _loaded(model: str | None, device: str | None, engine: Engine) -> BaseRecognizer:
    return load_recognizer(model, device, engine)


def _on_cpu(device: Any) -> bool:
    if device is not None:
        return str(device).partition(":")[0] == "cpu"
    return shutil.which("nvidia-smi") is None  # asking torch would take seconds


def _has_onnx(model: str | Path | None) -> bool:
    from .onnx_files import checkpoint_with_onnx

    try:
        checkpoint_with_onnx(model)
    except CheckpointError:  # PyTorch will say what is wrong, if anything is
        return False
    return True


__all__ = ["Engine", "load_recognizer", "recognize"]
