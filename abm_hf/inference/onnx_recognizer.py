"""Recognition with ONNX Runtime, from the folder that `abm-hf export onnx` writes. Without torch."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from ..crohme_style_abm import to_crohme_style
from ..decoding_abm import DecodingOptions, Hypothesis
from ..detokenization_abm import join_tokens
from ..image_loading_abm import ImageInputError, name_of, read_picture
from ..pretrained import CheckpointError
from .base import BaseRecognizer, Recognition, are_several
from .onnx_files import ENCODER_FILE, ONNX_FOLDER, checkpoint_with_onnx, step_file

_STYLE_OPTIONS = ("do_normalize", "min_side", "component_height", "margin", "max_pixels")


class LatexVocabulary:
    """Ids to LaTeX, as [`ABMTokenizer`] does it, from its files alone."""

    def __init__(self, folder: Path):
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"cannot read {folder / 'tokenizer.json'}: {error}") from error
        settings = _read_json(folder / "tokenizer_config.json")
        self.compact: bool = settings.get("compact", True)
        named = [settings[f"{name}_token"] for name in ("bos", "eos", "pad", "unk")]
        self.all_special_tokens = tuple(dict.fromkeys([*named, *settings.get("extra_special_tokens", ())]))
        self.all_special_ids = [self._id(token) for token in self.all_special_tokens]
        self.bos_token_id, self.eos_token_id, self.pad_token_id, self.unk_token_id = map(self._id, named)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        return [token for index in ids if (token := self._tokenizer.id_to_token(index)) is not None]

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int | None]:
        return [self._tokenizer.token_to_id(token) for token in tokens]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """LaTeX in the tokenizer's own form."""
        special = set(self.all_special_ids) if skip_special_tokens else set()
        tokens = self.convert_ids_to_tokens(index for index in ids if index not in special)
        return self.to_compact(tokens) if self.compact else " ".join(tokens)

    def _id(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise CheckpointError(f"tokenizer.json lacks the special token {token}: export the checkpoint again")
        return index

    def to_compact(self, tokens: Iterable[str]) -> str:
        return join_tokens(tokens, frozenset(self.all_special_tokens), self.all_special_tokens)


class OnnxState:
    """A branch over B images with K hypotheses each, see `search_abm.SearchState`.

    Args:
        session: one step of the branch.
        fixed: `keys` (B, D, L), `values` (B, L, C) and `mask` (B, h, w) of the images, the same at each step.
        hidden (B, S): the state before the first token.
    """

    def __init__(self, session: Any, fixed: dict[str, np.ndarray], hidden: np.ndarray):
        self.session = session
        self.fixed = fixed
        self.hidden = hidden[:, None]  # (B, K, S)
        mask = fixed["mask"]
        self.coverage = np.zeros((len(mask), 1, *mask.shape[1:]), np.float32)  # (B, K, h, w)

    def __len__(self) -> int:
        return len(self.hidden)

    def select(self, parents: np.ndarray) -> None:
        rows = np.arange(len(parents))[:, None]
        self.hidden, self.coverage = self.hidden[rows, parents], self.coverage[rows, parents]

    def keep(self, images: np.ndarray) -> None:
        self.fixed = {name: value[images] for name, value in self.fixed.items()}
        self.hidden, self.coverage = self.hidden[images], self.coverage[images]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        inputs = {"tokens": np.ascontiguousarray(tokens, np.int64), "hidden": self.hidden, "coverage": self.coverage}
        log_probs, self.hidden, self.coverage = self.session.run(None, inputs | self.fixed)
        return log_probs


class OnnxEngine:
    """Runs a model with ONNX Runtime, see [`Engine`].

    Args:
        folder: a checkpoint with a folder `onnx`.
        device: `"cpu"` (the default) or, with onnxruntime-gpu, `"cuda"` or such as `"cuda:1"`.
    """

    def __init__(self, folder: Path, device: str | None = None):
        config = _read_json(folder / "config.json")
        self.tokenizer = LatexVocabulary(folder)
        self.settings: Mapping[str, Any] = _read_json(folder / "generation_config.json")
        self.directions: Sequence[str] = config["directions"]
        self.feature_stride = 2 ** (1 + len(config["block_layers"]))
        self._encoder = _session(folder / ONNX_FOLDER / ENCODER_FILE, device)
        self._outputs = [output.name for output in self._encoder.get_outputs()]
        self._steps = {
            direction: _session(folder / ONNX_FOLDER / step_file(direction), device) for direction in self.directions
        }

    def encode(self, pixel_values: np.ndarray, pixel_mask: np.ndarray) -> dict[str, np.ndarray]:
        """Raises a `ValueError` if the sides are not multiples of the features' stride."""
        inputs = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        return dict(zip(self._outputs, self._encoder.run(None, inputs), strict=True))

    def start(self, encoded: Mapping[str, np.ndarray], direction: str) -> OnnxState:
        fixed = {"keys": encoded[f"keys_{direction}"], "values": encoded["values"], "mask": encoded["mask"]}
        return OnnxState(self._steps[direction], fixed, encoded[f"hidden_{direction}"])


class ABMOnnxModel(BaseRecognizer):
    """Recognizes images or ink as [`Recognizer`] does, with ONNX Runtime in place of torch.

    Args:
        model: a checkpoint with a folder `onnx` (`abm-hf export onnx` writes it): a directory, a Hub id, or the name
            of a packaged one; the packaged default if `None`.
        device: `"cpu"` (the default) or, with onnxruntime-gpu, `"cuda"` or such as `"cuda:1"`.
        threads: images recognized at a time on a CPU; by default `OMP_NUM_THREADS`, or as many as there are cores.

    Raises:
        CheckpointError: if there is no such checkpoint, or something in its ONNX files is missing, damaged or older
            than the weights beside them.
        ValueError: if onnxruntime has no such device.

    Example:

    ```python
    >>> from abm_hf import ABMOnnxModel

    >>> model = ABMOnnxModel("exported")
    >>> model.recognize("formula.png").latex
    'x^{2}+1'
    ```
    """

    def __init__(self, model: str | Path | None = None, device: str | None = None, threads: int | None = None):
        folder = checkpoint_with_onnx(model)
        self.path = str(folder)
        self.engine = OnnxEngine(folder, device)
        # On a CPU each image is recognized by itself, in a thread of its own: in a batch, padding, and intermediates
        # that no cache holds, take more time than larger products save.
        cores = threads or int(os.environ.get("OMP_NUM_THREADS", "0") or 0) or os.cpu_count()
        self._pool = ThreadPoolExecutor(cores) if (device or "cpu") == "cpu" else None
        self._image_options = _read_json(folder / "processor_config.json")["image_processor"]
        self.feature_stride = self.engine.feature_stride
        rows, columns = (
            math.lcm(multiple, self.feature_stride) for multiple in self._image_options["pad_to_multiple_of"]
        )
        self.pad_to_multiple_of = rows, columns

    def decode(self, images: Sequence[np.ndarray], options: DecodingOptions | None = None) -> list[list[Hypothesis]]:
        if self._pool is None or len(images) == 1:
            return super().decode(images, options)
        one = super().decode
        return [found for (found,) in self._pool.map(lambda image: one([image], options), images)]

    def recognize(self, images: Any, **options: Any) -> Recognition | list[Recognition]:
        """One [`Recognition`] for an image, a list for a list; options as for `Recognizer.__call__`."""
        results = self(images, **options)
        return results if are_several(images) else results[0]

    def normalize(self, image: Any) -> np.ndarray:
        options = self._image_options
        try:
            picture = read_picture(image, options["max_megapixels"], None)
            return to_crohme_style(picture, **{name: options[name] for name in _STYLE_OPTIONS}).image
        except ImageInputError as error:
            raise ImageInputError(error.reason, name_of(image)) from error

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in sorted((Path(self.path) / ONNX_FOLDER).glob("*.onnx")):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def limit_megapixels(self, limit: float) -> None:
        """Refuse images of more megapixels, whatever the processor's own limit is."""
        self._image_options["max_megapixels"] = limit


def _session(path: Path, device: str | None) -> Any:
    """One file, loaded."""
    again = f"write it with: abm-hf export onnx --model {path.parents[1]}"
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}: {again}")
    kind, _, number = (device or "cpu").partition(":")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(kind)
    if provider not in onnxruntime.get_available_providers():
        raise ValueError(f"this onnxruntime cannot run on {device}: use cpu, or install onnxruntime-gpu for cuda")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors reach the caller as exceptions
    options.intra_op_num_threads = 1
    try:
        chosen = {"device_id": number} if number else {}
        return onnxruntime.InferenceSession(path, options, providers=[(provider, chosen)])
    except Exception as error:  # onnxruntime has a class of its own for each kind of damage
        raise CheckpointError(f"{path} is damaged, or no file that this onnxruntime can read: {again}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
