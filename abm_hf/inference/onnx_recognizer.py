"""ABMOnnxModel: reads formulas with onnxruntime, from the folder that `abm-hf export onnx` writes. Without torch."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from ..crohme_style_abm import to_field_form
from ..detokenization_abm import join_tokens
from ..grammar_abm import tokenizer_grammar
from ..image_loading_abm import ImageInputError, read_picture
from ..pretrained import CheckpointError
from ..readings_abm import JUDGED, Reading, check_scales, distinct_readings, make_reading
from ..search_abm import Hypothesis, StepState, Task, beam_search, greedy_search, score_hypotheses
from .base import BaseRecognizer, Recognition, are_several, pad_pictures, resize_picture
from .onnx_files import ENCODER_FILE, ONNX_FOLDER, checkpoint_with_onnx, step_file

_FIELD_FORM_OPTIONS = ("do_normalize", "min_side", "component_height", "margin", "max_pixels")


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
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (self._id(token) for token in named[:3])

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        return [token for index in ids if (token := self._tokenizer.id_to_token(index)) is not None]

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


class ABMOnnxModel(BaseRecognizer):
    """Reads pictures or ink as [`Recognizer`] does, with onnxruntime in place of torch.

    Args:
        model: a checkpoint with a folder `onnx` (`abm-hf export onnx` writes it): a directory, a Hub id, or the name
            of a packaged one; the packaged default if `None`.
        device: `"cpu"` (the default) or, with onnxruntime-gpu, `"cuda"` or such as `"cuda:1"`.
        threads: for each operation; as many as there are cores by default.

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
        self.config = _read_json(folder / "config.json")
        self.tokenizer = LatexVocabulary(folder)
        self.generation_config = _read_json(folder / "generation_config.json")
        self._picture_options = _read_json(folder / "processor_config.json")["image_processor"]
        self._sessions = {
            name: _session(folder / ONNX_FOLDER / name, device, threads)
            for name in (ENCODER_FILE, *map(step_file, self.config["directions"]))
        }

    def recognize(self, images: Any, **options: Any) -> Recognition | list[Recognition]:
        """One [`Recognition`] for a picture, a list for a list; options as for `Recognizer.__call__`."""
        results = self(images, **options)
        return results if are_several(images) else results[0]

    def normalize(self, image: Any) -> np.ndarray:
        options = self._picture_options
        try:
            picture = read_picture(image, options["max_megapixels"], None)
            return to_field_form(picture, **{name: options[name] for name in _FIELD_FORM_OPTIONS}).image
        except ImageInputError as error:
            raise ImageInputError(
                error.reason, str(image) if isinstance(image, str | os.PathLike) else None
            ) from error

    def read(self, pictures: Sequence[np.ndarray], **options: Any) -> list[list[Reading]]:
        if options["max_length"] < 3:
            raise ValueError(
                f"max_length counts the start and the end token, so it must be at least 3, not {options['max_length']}"
            )
        settings = self.generation_config
        scales = check_scales(options.get("scales", settings.get("reading_scales", (1.0,))))
        views = [self._encode([resize_picture(picture, scale) for picture in pictures]) for scale in scales]
        num_beams, top_k = max(options["num_beams"], options["top_k"]), options["top_k"]
        search = views[0], num_beams, options["max_length"], options["grammar"]
        if options["two_way"]:
            weight = options.get("two_way_weight", settings.get("two_way_weight", 0.5))
            found, branches = self._two_way(*search, weight), {"l2r": 1 - weight, "r2l": weight}
            temperature = settings.get("two_way_score_temperature", 1.0)
        else:
            found = [[(item, sum(item.log_probs)) for item in row] for row in self._search(*search, "l2r")]
            branches, temperature = {"l2r": 1.0}, settings.get("score_temperature", 1.0)
        if len(views) > 1:
            few = [row[: max(top_k, min(num_beams, JUDGED))] for row in found]
            found = self._judged_at(views[1:], few, branches)
        return [
            distinct_readings([self._reading(*candidate) for candidate in row[:top_k]], temperature) for row in found
        ]

    def _reading(self, hypothesis: Hypothesis, joint: float) -> Reading:
        return make_reading(hypothesis.ids, [math.exp(score) for score in hypothesis.log_probs], joint, self.tokenizer)

    def _judged_at(
        self,
        views: Sequence[Mapping[str, np.ndarray]],
        found: list[list[tuple[Hypothesis, float]]],
        branches: Mapping[str, float],
    ) -> list[list[tuple[Hypothesis, float]]]:
        """The same hypotheses, with the mean of their log-probability and those at further sizes, and by that."""
        formulas = [[self._formula(hypothesis, "l2r") for hypothesis, _ in row] for row in found]
        totals = [[joint for _, joint in row] for row in found]
        for view in views:
            for direction, weight in branches.items():
                for row, judged in zip(totals, self._judge(view, direction, formulas), strict=True):
                    row[:] = [total + weight * sum(scores) for total, scores in zip(row, judged, strict=True)]
        return [
            sorted(
                [(hypothesis, total / (1 + len(views))) for (hypothesis, _), total in zip(row, sums, strict=True)],
                key=lambda candidate: -candidate[1] / len(candidate[0].ids),
            )
            for row, sums in zip(found, totals, strict=True)
        ]

    def _encode(self, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        stride = 2 ** (1 + len(self.config["block_layers"]))
        row, column = (math.lcm(multiple, stride) for multiple in self._picture_options["pad_to_multiple_of"])
        values, mask = pad_pictures(pictures, (row, column))
        session = self._sessions[ENCODER_FILE]
        outputs = session.run(None, {"pixel_values": values, "pixel_mask": mask})
        return dict(zip([output.name for output in session.get_outputs()], outputs, strict=True))

    def _start(self, encoded: Mapping[str, np.ndarray], direction: str, hypotheses: int) -> StepState:
        if f"hidden_{direction}" not in encoded:
            raise ValueError(f"this model has no branch {direction!r}: it has {sorted(self.config['directions'])}")
        mask = encoded["mask"]
        return StepState(
            keys=encoded[f"keys_{direction}"],
            values=encoded["values"],
            mask=mask,
            hidden=encoded[f"hidden_{direction}"][:, None].repeat(hypotheses, axis=1),
            coverage=np.zeros((len(mask), hypotheses, *mask.shape[1:]), np.float32),
        )

    def _step(self, direction: str, state: StepState, tokens: np.ndarray) -> np.ndarray:
        inputs = {"tokens": np.ascontiguousarray(tokens, np.int64), **vars(state)}
        log_probs, state.hidden, state.coverage = self._sessions[step_file(direction)].run(None, inputs)
        return log_probs

    def _search(
        self, encoded: Mapping[str, np.ndarray], num_beams: int, max_length: int, grammar: bool, direction: str
    ) -> list[list[Hypothesis]]:
        """What the branch writes, in the order in which it writes."""
        tables = tokenizer_grammar(self.tokenizer, direction) if grammar else None
        task = Task(*self._ends(direction), max_length, tables)
        state = self._start(encoded, direction, num_beams)
        step = partial(self._step, direction)
        return greedy_search(step, state, task) if num_beams == 1 else beam_search(step, state, task, num_beams)

    def _ends(self, direction: str) -> tuple[int, int]:
        """The tokens with which the branch begins and ends."""
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return (first, last) if direction == "l2r" else (last, first)

    def _two_way(
        self, encoded: Mapping[str, np.ndarray], num_beams: int, max_length: int, grammar: bool, weight: float
    ) -> list[list[tuple[Hypothesis, float]]]:
        """What both branches find and both judge, the best first, with the weighted mean of both log-probabilities.

        Ranked by that over the length, as `two_way_search` does. The hypotheses read from left to right and carry that
        branch's log-probabilities.
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be from 0 (left to right alone) to 1 (right to left alone), it is {weight}")
        if missing := {"l2r", "r2l"} - set(self.config["directions"]):
            raise ValueError(
                f"two-way search needs both branches, this model has no {' and no '.join(sorted(missing))}"
            )
        candidates: list[dict[tuple[int, ...], tuple[tuple[float, ...], float]]] = [{} for _ in encoded["mask"]]
        for direction, other in (("l2r", "r2l"), ("r2l", "l2r")):
            found = self._search(encoded, num_beams, max_length, grammar, direction)
            formulas = [[self._formula(hypothesis, direction) for hypothesis in row] for row in found]
            judged = self._judge(encoded, other, formulas)
            for known, row, scores, texts in zip(candidates, found, judged, formulas, strict=True):
                for own, others, formula in zip(row, scores, texts, strict=True):
                    forward, backward = (own.log_probs, others) if direction == "l2r" else (others, own.log_probs)
                    known.setdefault(formula, (forward, (1 - weight) * sum(forward) + weight * sum(backward)))
        end = (self.tokenizer.eos_token_id,)
        return [
            [
                (Hypothesis(formula + end, forward), joint)
                for formula, (forward, joint) in sorted(
                    known.items(), key=lambda item: -item[1][1] / (len(item[0]) + 1)
                )
            ]
            for known in candidates
        ]

    def _formula(self, hypothesis: Hypothesis, direction: str) -> tuple[int, ...]:
        """Its tokens from left to right, without an end token."""
        stop = self._ends(direction)[1]
        ids = hypothesis.ids[:-1] if hypothesis.ids[-1] == stop else hypothesis.ids
        return ids if direction == "l2r" else ids[::-1]

    def _judge(
        self, encoded: Mapping[str, np.ndarray], direction: str, formulas: Sequence[Sequence[tuple[int, ...]]]
    ) -> list[list[tuple[float, ...]]]:
        """Log-probabilities that a branch gives to the tokens of each picture's formulas, in its reading order."""
        first, last = self._ends(direction)
        most = max(len(row) for row in formulas)
        length = 1 + max(len(formula) for row in formulas for formula in row)
        read = np.full((len(formulas), most, length), first)
        targets = np.full((len(formulas), most, length), last)
        for picture, row in enumerate(formulas):
            for index, formula in enumerate(row):
                written = formula if direction == "l2r" else formula[::-1]
                read[picture, index, 1 : len(formula) + 1] = written
                targets[picture, index, : len(formula)] = written
        state = self._start(encoded, direction, most)
        scored = score_hypotheses(partial(self._step, direction), state, read, targets)
        return [
            [tuple(scored[picture, index, : len(formula) + 1].tolist()) for index, formula in enumerate(row)]
            for picture, row in enumerate(formulas)
        ]


def _session(path: Path, device: str | None, threads: int | None) -> Any:
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
    options.intra_op_num_threads = threads or 0
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
