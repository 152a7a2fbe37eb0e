"""The only way out: writes a checkpoint so that it loads anywhere, and publishes it.

`model.save_pretrained` alone writes a checkpoint that needs this package. Here the classes are marked for their Auto
classes first, so that the code goes along and `from_pretrained(..., trust_remote_code=True)` works without it.
"""

import shutil
from pathlib import Path

from .configuration_abm import ABMConfig
from .image_processing_abm import ABMImageProcessor
from .modeling_abm import ABMForConditionalGeneration
from .processing_abm import ABMProcessor
from .tokenization_abm import ABMTokenizer

_AUTO_CLASSES = {
    ABMConfig: "AutoConfig",
    ABMForConditionalGeneration: "AutoModelForImageTextToText",
    ABMImageProcessor: "AutoImageProcessor",
    ABMTokenizer: "AutoTokenizer",
    ABMProcessor: "AutoProcessor",
}


def save_pretrained(
    model: ABMForConditionalGeneration, folder: str | Path, processor: ABMProcessor | None = None
) -> Path:
    """Writes model, processor, tokenizer, generation config and the code that loads them.

    Args:
        model: written in the precision that it has; `model.half()` halves the file.
        folder: made where it does not exist.
        processor: the default one, with the released vocabulary, if `None`.

    Returns:
        The folder.

    Raises:
        OSError: if the folder cannot be written.
    """
    for cls, auto_class in _AUTO_CLASSES.items():
        cls.register_for_auto_class(auto_class)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (processor or ABMProcessor()).save_pretrained(folder)
    # The library copies what a class's file imports; what those import in turn is left to us.
    for module in Path(__file__).parent.glob("*_abm.py"):
        shutil.copyfile(module, folder / module.name)
    return folder
