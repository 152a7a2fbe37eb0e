"""The model of a command, or one line about why there is none."""

from typing import TYPE_CHECKING

from .messages import fail, one_line

if TYPE_CHECKING:
    from ..recognition import Recognizer


def load_recognizer(model: str | None, device: str | None) -> "Recognizer | None":
    """The recognizer, or `None` after one line about what is wrong with the checkpoint or device."""
    from transformers.utils import logging

    from ..recognition import Recognizer
    from ..runtime import tune_process

    tune_process()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return Recognizer(model, device)
    except Exception as error:  # loading goes through three libraries, each with errors of its own
        fail(f"cannot load the model {model or '(packaged)'}: {one_line(error)}")
        return None
