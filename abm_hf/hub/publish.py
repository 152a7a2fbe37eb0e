"""The only way out: writes a checkpoint so that it loads anywhere, and publishes it, alone or with the demo.

`model.save_pretrained` alone writes a checkpoint that needs this package. Here the classes are marked for their Auto
classes first, so that the code goes along and `from_pretrained(..., trust_remote_code=True)` works without it.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, RepoCard

# HTTPError is that of the library that huggingface_hub speaks HTTP with, which its versions differ in.
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from ..configuration_abm import ABMConfig
from ..image_processing_abm import ABMImageProcessor
from ..inference.onnx_files import EXPORT_FILE, ONNX_FOLDER, checkpoint_with_onnx, write_export_file
from ..modeling_abm import ABMForConditionalGeneration
from ..pretrained import PACKAGED, CheckpointError, checkpoint_path
from ..processing_abm import ABMProcessor
from ..tokenization_abm import ABMTokenizer
from .card import PIPELINE_TAG, write_model_card

# What a checkpoint directory may hold besides model, processor and code: the evidence that its card states.
_EVIDENCE = (
    "training.json", "metrics.jsonl", "training_curve.png", "results", "speed.json", "calibration.json",
    "reliability.png", "failures.png",
)  # fmt: skip

# The Space's own files; in a checkout a link to `space/`.
_PACKAGE = Path(__file__).parents[1]
_SPACE_FILES = _PACKAGE / "demo" / "space_files"

_AUTO_CLASSES: dict[Any, str] = {
    ABMConfig: "AutoConfig",
    ABMForConditionalGeneration: "AutoModelForImageTextToText",
    ABMImageProcessor: "AutoImageProcessor",
    ABMTokenizer: "AutoTokenizer",
    ABMProcessor: "AutoProcessor",
}


# What `pipeline(task, model=…, trust_remote_code=True)` needs to know. The Hub's own snippet names the task of the
# card's `pipeline_tag`, which transformers itself no longer has.
_PIPELINE = {"impl": "pipeline_abm.ImageToLatexPipeline", "pt": ["AutoModelForImageTextToText"], "type": "multimodal"}
_PIPELINES = {"image-to-latex": _PIPELINE, PIPELINE_TAG: _PIPELINE}


class HubError(RuntimeError):
    """The Hub refused or cannot be reached; the message is one line that says what to do."""


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
    model.config.custom_pipelines = _PIPELINES
    model.save_pretrained(folder)
    (processor or ABMProcessor()).save_pretrained(folder)
    # The library copies what a class's file imports; what those import in turn is left to us.
    for module in _PACKAGE.glob("*_abm.py"):
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
        ImportError: if it has no ONNX export that belongs to its weights, and onnx or onnxscript is missing.
        OSError: if the folder cannot be written.
    """
    path = Path(checkpoint_path(source))
    model = ABMForConditionalGeneration.from_pretrained(path)
    folder = save_pretrained(model, folder, ABMProcessor.from_pretrained(path))
    # The pictures and the log of the packaged checkpoint are in no wheel, but in the documentation of a checkout.
    for place in [_PACKAGE.parent / "docs" / path.name, path] if path.parent == PACKAGED else [path]:
        for evidence in _EVIDENCE:
            if (place / evidence).is_dir():
                shutil.copytree(place / evidence, folder / evidence, dirs_exist_ok=True)
            elif (place / evidence).is_file():
                shutil.copyfile(place / evidence, folder / evidence)
    _add_onnx(path, folder)
    write_model_card(folder, repository, name)
    return folder


def _add_onnx(source: Path, folder: Path) -> None:
    """Puts an ONNX export of the weights beside them: the source's own, if it belongs to its weights, or a new one."""
    try:
        exported = checkpoint_with_onnx(source) / ONNX_FOLDER
    except CheckpointError:
        from .onnx_export import export_onnx

        export_onnx(folder)
        return
    target = folder / ONNX_FOLDER
    shutil.copytree(exported, target, dirs_exist_ok=True)
    # Saving wrote the same weights again, not always the same bytes.
    write_export_file(folder, target, json.loads((exported / EXPORT_FILE).read_text(encoding="utf-8"))["encoder"])


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
        HubError: if the Hub refuses or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = export_checkpoint(source, temporary, repository, repository.rsplit("/", 1)[-1])
        return _upload(HfApi(token=token), repository, folder, "model", private=private)


def export_space(folder: str | Path, model: str | None = None) -> Path:
    """Writes all that a Space of the demo holds: its page's settings, this package, and weights. No network.

    Args:
        folder: made where it does not exist.
        model: a Hub id, from which the Space takes its weights when it starts, or the name of a packaged checkpoint,
            which goes along; the packaged default if `None`. The Space must be told of either in `MODEL_ID`.

    Returns:
        The folder.

    Raises:
        CheckpointError: if there is no such checkpoint, or it is a directory, which a Space cannot see.
        OSError: if the folder cannot be written.
    """
    path = checkpoint_path(model)
    packaged = Path(path).parent == PACKAGED
    if not packaged and Path(path).is_dir():
        raise CheckpointError(f"a Space cannot take weights from the directory {path}: publish them with `push` first")
    if not (_SPACE_FILES / "app.py").is_file():
        raise FileNotFoundError(f"{_SPACE_FILES} is not the link to space/ that it should be: install the package")
    folder = Path(folder)
    shutil.copytree(_SPACE_FILES, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    package = _PACKAGE
    left_out = shutil.ignore_patterns("__pycache__", PACKAGED.name, _SPACE_FILES.name)
    shutil.copytree(package, folder / package.name, dirs_exist_ok=True, ignore=left_out)
    if packaged:
        shutil.copytree(path, folder / package.name / PACKAGED.name / Path(path).name, dirs_exist_ok=True)
    else:
        card = RepoCard.load(folder / "README.md")
        card.data["models"] = [path]
        card.save(folder / "README.md")
    return folder


def push_space(repository: str, model: str | None = None, *, private: bool = True, token: str | None = None) -> str:
    """Publishes the demo as a Space.

    Args:
        repository: such as `"user/handwritten-mathematics"`; made where it does not exist.
        model: see `export_space`; becomes the Space's variable `MODEL_ID`.
        private: whether a Space that is made is private.
        token: of the Hub; the one that is logged in by default.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: as `export_space`.
        HubError: if the Hub refuses or cannot be reached.
    """
    variables = {"MODEL_ID": model} if model else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = export_space(temporary, model)
        return _upload(HfApi(token=token), repository, folder, "space", private=private, variables=variables)


def _upload(
    api: HfApi, repository: str, folder: Path, kind: str, *, private: bool, variables: dict[str, str] | None = None
) -> str:
    """Makes the repository where it does not exist, and commits the folder; what is there and not in it stays."""
    try:
        sdk = "gradio" if kind == "space" else None
        api.create_repo(repository, repo_type=kind, space_sdk=sdk, private=private, exist_ok=True)
        for name, value in (variables or {}).items():
            api.add_space_variable(repository, name, value)
        commit = api.upload_folder(
            repo_id=repository, repo_type=kind, folder_path=folder, commit_message="Publish with abm_hf"
        )
    except (HTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise HubError(f"cannot publish {repository}: {reason}{_remedy(error)}") from error
    return str(commit.commit_url)


def _remedy(error: Exception) -> str:
    """What to do about it, where that is known."""
    if isinstance(error, HfHubHTTPError):
        refused = error.response is not None and error.response.status_code in (401, 403)
        return " (log in with `hf auth login`, with a token that may write there)" if refused else ""
    return " (is there a connection to the Hub?)" if isinstance(error, HTTPError) else ""
