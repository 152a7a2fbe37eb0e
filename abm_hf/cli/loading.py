"""The model of a command, or one line about why there is none."""

import importlib.util
import shutil
from typing import TYPE_CHECKING

from ..pretrained import CheckpointError
from .messages import fail, one_line

if TYPE_CHECKING:
    from ..inference.onnx_recognizer import ABMOnnxModel
    from ..inference.recognizer import Recognizer
    from ..runtime import Precision


def load_recognizer(model: str | None, device: str | None, precision: "Precision" = "float32") -> "Recognizer | None":
    """The recognizer, or `None` after one line about what is wrong with the checkpoint or device."""
    from transformers.utils import logging

    from ..inference.recognizer import Recognizer
    from ..runtime import tune_process

    tune_process()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return Recognizer(model, device, precision)
    except Exception as error:  # loading goes through three libraries, each with errors of its own
        _explain(model, error)
        return None


def load_onnx_model(model: str | None, device: str | None) -> "ABMOnnxModel | None":
    """As `load_recognizer`, for onnxruntime; without torch, unless a checkpoint is to be exported first."""
    try:
        from ..inference.onnx_recognizer import ABMOnnxModel

        return ABMOnnxModel(model, device)
    except Exception as error:
        _explain(model, error)
        return None


def reads_with_onnx(model: str | None) -> bool:
    """Whether onnxruntime can start at once, in a tenth of the time that importing torch takes."""
    from ..inference.onnx_cache import ready_export

    if importlib.util.find_spec("onnxruntime") is None or shutil.which("nvidia-smi"):  # torch reads on the GPU
        return False
    try:
        return ready_export(model) is not None
    except (CheckpointError, OSError):  # torch will say what is wrong with it
        return False


def _explain(model: str | None, error: Exception) -> None:
    fail(f"cannot load the model {model or '(packaged)'}: {one_line(error)}")
