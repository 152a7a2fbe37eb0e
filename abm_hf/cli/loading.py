"""The recognizer of a command, or one line about why there is none."""

from typing import TYPE_CHECKING, Any

from .messages import fail, one_line

if TYPE_CHECKING:
    from ..inference.loading import Engine


def load_recognizer(model: str | None, device: str | None, engine: "Engine" = "auto") -> Any:
    """The recognizer, or `None` after one line about what is wrong with the checkpoint or device."""
    from ..inference import loading

    try:
        engine = loading.choose_engine(model, device, engine)
        if engine == "torch":
            _prepare_torch()
        return loading.load_recognizer(model, device, engine)
    except Exception as error:  # loading goes through three libraries, each with errors of its own
        fail(f"cannot load the model {model or '(packaged)'}: {one_line(error)}")
        return None


def _prepare_torch() -> None:
    """Fewer page faults, and nothing on stderr but errors of our own."""
    from transformers.utils import logging

    from ..runtime import tune_process

    tune_process()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
