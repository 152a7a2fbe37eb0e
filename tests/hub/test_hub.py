"""A saved checkpoint loads anywhere: with the package, through the Auto classes, and without the package."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import abm_hf
from abm_hf import ABMForConditionalGeneration
from abm_hf.hub.publish import save_pretrained

# A process in which `import abm_hf` fails, as on a machine that never installed it.
_WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "abm_hf":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
"""


def _run(code: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(cwd), **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_remote_code_loads_without_the_package(tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = f"""
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    folder = {str(tiny_checkpoint)!r}
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "abm"
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(images=torch.eye(40).mul(255).byte().numpy())
    torch.manual_seed(0)
    print(model.generate(**inputs, max_length=10, num_beams=2).tolist())
    print(tokenizer.decode([38], skip_special_tokens=True))
    assert "abm_hf" not in sys.modules
    """
    remote = _run(_WITHOUT_PACKAGE + textwrap.dedent(code), tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
    model = ABMForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    inputs = abm_hf.ABMProcessor()(images=torch.eye(40).mul(255).byte().numpy())
    assert remote.splitlines() == [str(model.generate(**inputs, max_length=10, num_beams=2).tolist()), "3"]


@pytest.mark.parametrize("task", ["image-to-latex", "image-to-text"])
def test_the_pipeline_of_a_checkpoint_loads_without_the_package(
    tiny_checkpoint: Path, tmp_path: Path, task: str
) -> None:
    """Also under the task of the card's tag, which the Hub's own snippet names."""
    Image.fromarray(np.eye(60, 90, dtype=np.uint8) * 255).save(tmp_path / "formula.png")
    code = f"""
    from transformers import pipeline

    recognizer = pipeline({task!r}, model={str(tiny_checkpoint)!r}, trust_remote_code=True)
    print(recognizer("formula.png", max_length=8))
    """
    remote = _run(_WITHOUT_PACKAGE + textwrap.dedent(code), tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
    here = pipeline("image-to-latex", model=str(tiny_checkpoint), trust_remote_code=True)
    (expected,) = here(str(tmp_path / "formula.png"), max_length=8)
    assert repr(expected["latex"]) in remote


def test_a_saved_pipeline_loads_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    image = np.eye(60, 90, dtype=np.uint8) * 255
    saved = pipeline("image-to-latex", model=str(tiny_checkpoint), trust_remote_code=True)
    saved.save_pretrained(tmp_path / "saved")
    loaded = pipeline("image-to-latex", model=str(tmp_path / "saved"), trust_remote_code=True)
    assert loaded(image, max_length=8) == saved(image, max_length=8)


def test_auto_classes_know_the_package(tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = f"""
    import abm_hf
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    for auto in (AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer):
        print(type(auto.from_pretrained({str(tiny_checkpoint)!r}, trust_remote_code=False)).__module__)
    """
    modules = _run(code, tmp_path, PYTHONPATH=str(Path(abm_hf.__file__).parent.parent)).split()
    assert modules == [
        f"abm_hf.{name}_abm"
        for name in ("configuration", "image_processing", "modeling", "processing", "tokenization")
    ]


def test_the_pipeline_is_registered_whatever_comes_first(tmp_path: Path) -> None:
    task = (
        'from transformers.pipelines import PIPELINE_REGISTRY as R; print("image-to-latex" in R.get_supported_tasks())'
    )
    package = str(Path(abm_hf.__file__).parent.parent)
    for first in ("import abm_hf", "from abm_hf import ImageToLatexPipeline", "import abm_hf.pipeline_abm"):
        assert _run(f"{first}\n{task}", tmp_path, PYTHONPATH=package).strip() == "True", first


def test_importing_is_light(tmp_path: Path) -> None:
    code = """
    import sys
    import abm_hf
    print([name for name in ("torch", "transformers", "numpy", "PIL") if name in sys.modules])
    """
    assert _run(code, tmp_path, PYTHONPATH=str(Path(abm_hf.__file__).parent.parent)).strip() == "[]"
    assert list(tmp_path.iterdir()) == [], "importing writes nothing"


def test_every_export_exists() -> None:
    for name in abm_hf.__all__:
        assert getattr(abm_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'ABMModle'"):
        abm_hf.ABMModle  # noqa: B018


def test_checkpoint_files_import_each_other_only() -> None:
    """The rule that remote code needs: third-party packages and siblings, one import to a line."""
    package = Path(abm_hf.__file__).parent
    for module in package.glob("*_abm.py"):
        for line in module.read_text(encoding="utf-8").splitlines():
            assert not line.lstrip().startswith(("from ..", "from abm_hf", "import abm_hf", "from . ")), (module, line)
            if line.lstrip().startswith("from ."):
                assert line.split()[1].endswith("_abm") and "(" not in line, (module, line)


def test_half_precision_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = ABMForConditionalGeneration.from_pretrained(tiny_checkpoint)
    save_pretrained(model.half(), tmp_path)
    loaded = ABMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * (
        tiny_checkpoint / "model.safetensors"
    ).stat().st_size
