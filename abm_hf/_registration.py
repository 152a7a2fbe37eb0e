"""Makes transformers' Auto classes and `pipeline` know ABM once transformers is imported, and not before.

Registering needs the classes themselves, and so torch: seconds that `import abm_hf` alone should not take. Each
registration therefore waits for the part of transformers that it concerns.
"""

from importlib import import_module
from typing import Any

from wrapt import when_imported


def _ours(module: str, name: str) -> Any:
    return getattr(import_module(f".{module}", __package__), name)


def register() -> None:
    """Queues the registrations; those whose part of transformers is there already are made at once."""
    for name, hook in (
        ("configuration_auto", _register_config),
        ("modeling_auto", _register_model),
        ("tokenization_auto", _register_tokenizer),
        ("image_processing_auto", _register_image_processor),
        ("processing_auto", _register_processor),
    ):
        when_imported(f"transformers.models.auto.{name}")(hook)
    # The pipeline's module imports transformers.pipelines itself and may be half-way when that hook is called: it is
    # registered when it is whole, whichever of the two is asked for first.
    when_imported("transformers.pipelines")(_import_pipeline)
    when_imported(f"{__package__}.pipeline_abm")(_register_pipeline)


def _register_config(auto: Any) -> None:
    auto.AutoConfig.register("abm", _ours("configuration_abm", "ABMConfig"), exist_ok=True)


def _register_model(auto: Any) -> None:
    config, model = _ours("configuration_abm", "ABMConfig"), _ours("modeling_abm", "ABMForConditionalGeneration")
    auto.AutoModelForImageTextToText.register(config, model, exist_ok=True)


def _register_tokenizer(auto: Any) -> None:
    config, tokenizer = _ours("configuration_abm", "ABMConfig"), _ours("tokenization_abm", "ABMTokenizer")
    auto.AutoTokenizer.register(config, tokenizer, exist_ok=True)


def _register_image_processor(auto: Any) -> None:
    config, processor = _ours("configuration_abm", "ABMConfig"), _ours("image_processing_abm", "ABMImageProcessor")
    auto.AutoImageProcessor.register(config, image_processor_classes={"pil": processor}, exist_ok=True)


def _register_processor(auto: Any) -> None:
    config, processor = _ours("configuration_abm", "ABMConfig"), _ours("processing_abm", "ABMProcessor")
    auto.AutoProcessor.register(config, processor, exist_ok=True)


def _import_pipeline(_: Any) -> None:
    import_module(".pipeline_abm", __package__)


def _register_pipeline(module: Any) -> None:
    # By its Auto class: that is what a pipeline that is saved can be loaded with again.
    import_module("transformers.pipelines").PIPELINE_REGISTRY.register_pipeline(
        "image-to-latex",
        pipeline_class=module.ImageToLatexPipeline,
        pt_model=(import_module("transformers").AutoModelForImageTextToText,),
        type="multimodal",
    )
