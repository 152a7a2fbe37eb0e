"""The only way out: writes a checkpoint so that it loads anywhere, and publishes it.

`model.save_pretrained` alone writes a checkpoint that needs this package. Here the classes are marked for their Auto
classes first, so that the code goes along and `from_pretrained(..., trust_remote_code=True)` works without it.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from .configuration_abm import ABMConfig
from .image_processing_abm import ABMImageProcessor
from .model_card import write_model_card
from .modeling_abm import ABMForConditionalGeneration
from .pretrained import checkpoint_path
from .processing_abm import ABMProcessor
from .tokenization_abm import ABMTokenizer

# What a checkpoint directory may hold besides model, processor and code: the evidence that its card states.
_EVIDENCE = ("training.json", "metrics.jsonl", "training_curve.png", "results")

_AUTO_CLASSES: dict[Any, str] = {
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


def export_checkpoint(source: str | Path | None, folder: str | Path, repository: str, name: str = "ABM") -> Path:
    """Writes all that a model repository holds: the checkpoint, its code, its evidence and its card. No network.

    Args:
        source: a directory, Hub id or packaged checkpoint; the packaged default if `None`.
        folder: made where it does not exist.
        repository: the id that the card's examples name.
        name: title of the card.

    Returns:
        The folder.

    Raises:
        CheckpointError: if there is no such checkpoint.
        OSError: if the folder cannot be written.
    """
    path = Path(checkpoint_path(source))
    model = ABMForConditionalGeneration.from_pretrained(path)
    folder = save_pretrained(model, folder, ABMProcessor.from_pretrained(path))
    for evidence in _EVIDENCE:
        if (path / evidence).is_dir():
            shutil.copytree(path / evidence, folder / evidence, dirs_exist_ok=True)
        elif (path / evidence).is_file():
            shutil.copyfile(path / evidence, folder / evidence)
    write_model_card(folder, repository, name)
    return folder


def push_to_hub(
    repository: str, source: str | Path | None = None, *, private: bool = True, token: str | None = None
) -> str:
    """Publishes a checkpoint as a model repository.

    Args:
        repository: such as `"user/abm-small"`; made where it does not exist.
        source: see `export_checkpoint`.
        private: whether a repository that is made is private.
        token: of the Hub; the one that is logged in by default.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: if there is no such checkpoint.
        huggingface_hub.errors.HfHubHTTPError: if the Hub refuses.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = export_checkpoint(source, temporary, repository, repository.rsplit("/", 1)[-1])
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Publish with abm_hf")
    return str(commit.commit_url)
