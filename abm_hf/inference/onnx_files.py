"""The `onnx` folder of a checkpoint: which files are in it, and whether they belong to the weights beside it."""

import hashlib
import json
from pathlib import Path

from ..pretrained import CheckpointError, checkpoint_path

ONNX_FOLDER = "onnx"
ENCODER_FILE = "encoder.onnx"
EXPORT_FILE = "export.json"  # written last: its presence says that the export is whole

_REMEDY = "write it with: abm-hf export onnx --model"


def step_file(direction: str) -> str:
    """The file with one decoding step of the branch `direction`."""
    return f"step_{direction}.onnx"


def checkpoint_with_onnx(model: str | Path | None = None) -> Path:
    """The local folder of a checkpoint whose `onnx` folder is there and up to date.

    Args:
        model: a directory, a Hub id (its ONNX files and settings are downloaded), the name of a packaged checkpoint;
            the packaged default if `None`.

    Raises:
        CheckpointError: if there is no such checkpoint, it has no ONNX files, or its weights have changed since they
            were exported.
    """
    name = checkpoint_path(model)
    folder = Path(name) if Path(name).is_dir() else _download(name)
    export = folder / ONNX_FOLDER / EXPORT_FILE
    if not export.is_file():
        raise CheckpointError(f"{name} has no ONNX files: {_REMEDY} {name}")
    try:
        exported_from = json.loads(export.read_text(encoding="utf-8"))["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{export} is damaged ({error}): {_REMEDY} {name}") from error
    # A folder of ONNX files alone has no weights that could differ.
    if any(folder.glob("*.safetensors")) and weights_fingerprint(folder) != exported_from:
        raise CheckpointError(f"the weights of {name} have changed since its ONNX files were made: {_REMEDY} {name}")
    return folder


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 of the checkpoint's weight files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def write_export_file(folder: Path, onnx_folder: Path, encoder: str) -> None:
    """Notes in `onnx_folder` that it was made from the weights in `folder`, with an encoder of this precision."""
    content = {"encoder": encoder, "weights_sha256": weights_fingerprint(folder)}
    (onnx_folder / EXPORT_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", f"{ONNX_FOLDER}/*"]))
    except Exception as error:  # the library's errors share no class of their own
        raise CheckpointError(f"cannot download {name}: {error}") from error
