"""The folder of ONNX files for a model: its own, or one made of a checkpoint at its first use, and kept."""

import hashlib
import logging
import os
from pathlib import Path

from ..pretrained import CheckpointError, checkpoint_path
from .onnx_files import ENCODER_FILE, EXPORT_FILE

# Raised when what `export_onnx` writes changes: earlier files in the cache are not used any more.
_FORMAT = "1"
_DOWNLOADED = ["*.json", "*.onnx", "*.safetensors"]

_logger = logging.getLogger(__name__)


def exported_folder(model: str | Path | None = None) -> Path:
    """A folder as `export_onnx` writes it.

    Args:
        model: such a folder, or a checkpoint: a directory, a Hub id (of either), the name of a packaged checkpoint;
            the packaged default if `None`.

    Raises:
        CheckpointError: if there is no such model.
        ImportError: if a checkpoint is to be exported and what that needs is missing.
        OSError: if the cache cannot be written; `ABM_HF_CACHE` names another folder for it.
    """
    folder = _local_folder(checkpoint_path(model))
    if (folder / ENCODER_FILE).is_file() or (folder / EXPORT_FILE).is_file():
        return folder
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds neither ONNX files nor a checkpoint's weights")
    exported = cache_folder() / _fingerprint(folder)
    if not (exported / EXPORT_FILE).is_file():
        try:
            from ..hub.onnx_export import export_onnx
        except ImportError as error:
            raise ImportError(f"exporting {folder} to ONNX needs {error.name}: pip install 'abm-hf[onnx]'") from error
        _logger.warning("Exporting %s to ONNX, once; it is kept in %s", folder, exported)
        export_onnx(folder, exported)
    return exported


def ready_export(model: str | Path | None = None) -> Path | None:
    """What [`exported_folder`] would give at once: nothing is exported or downloaded for it.

    Raises:
        CheckpointError: if there is no such model.
    """
    folder = Path(checkpoint_path(model))
    if (folder / ENCODER_FILE).is_file():
        return folder
    if not any(folder.glob("*.safetensors")):
        return None  # a Hub id
    exported = cache_folder() / _fingerprint(folder)
    return exported if (exported / EXPORT_FILE).is_file() else None


def cache_folder() -> Path:
    """Where exports are kept: `$ABM_HF_CACHE`, or `abm_hf/onnx` in the user's cache folder."""
    if named := os.environ.get("ABM_HF_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "abm_hf" / "onnx"


def _local_folder(name: str) -> Path:
    """A directory as it is; of a Hub id, the downloaded files."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=_DOWNLOADED))


def _fingerprint(folder: Path) -> str:
    """A name that changes with whatever an export is made of."""
    digest = hashlib.sha256(_FORMAT.encode())
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(file.name.encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
