"""abm_hf: handwritten mathematics to LaTeX, as a Hugging Face model.

Names are imported on first use, so that `import abm_hf` and `abm-hf --help` need neither torch nor transformers.
"""

from importlib import import_module
from typing import Any

from ._registration import register as _register

__version__ = "0.1.0"

_EXPORTS = {
    "configuration_abm": ("ABMConfig",),
    "modeling_abm": ("ABMForConditionalGeneration", "ABMPreTrainedModel"),
    "image_processing_abm": ("ABMImageProcessor", "ImageInputError"),
    "tokenization_abm": ("ABMTokenizer",),
    "processing_abm": ("ABMProcessor",),
    "inference.generation": (
        "LatexGrammarLogitsProcessor",
        "RescoredOutput",
        "rescored_generate",
        "score_sequences",
    ),
    "decoding_abm": ("DecodingOptions", "Hypothesis"),
    "pipeline_abm": ("ImageToLatexPipeline",),
    "inference.recognizer": ("Recognizer",),
    "inference.loading": ("load_recognizer", "recognize"),
    "inference.base": ("Explanation", "Recognition"),
    "inference.onnx_recognizer": ("ABMOnnxModel",),
    "hub": ("push_to_hub", "save_pretrained"),
    "latex.normalization": ("LatexError", "is_well_formed", "normalize_latex", "parse_latex"),
    "inference.typesetting": ("TypesetError", "render_latex", "to_mathml"),
    "evaluation": ("expression_rate",),
    "ink.strokes": ("Ink", "InkError", "InkWarning"),
    "ink.inkml": ("read_inkml", "write_inkml"),
    "ink.rendering": ("render_ink",),
}

_register()
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'abm_hf' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
