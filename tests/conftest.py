"""Fixtures shared by the suite: where the research data is, when it is there at all.

CROHME may not be redistributed, so tests that read it skip without it. The environment variable `ABM_HF_CROHME` names
a folder that holds `crohme-offline.zip` and either `crohme-inkml.tar.xz` or the folder `crohme` unpacked from it;
`data/` in the repository is tried when the variable is unset.
"""

import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from abm_hf import ABMConfig

FIXTURES = Path(__file__).parent / "fixtures"


def _crohme_folder() -> Path:
    return Path(os.environ.get("ABM_HF_CROHME", Path(__file__).parent.parent / "data"))


@pytest.fixture(scope="session")
def crohme_offline() -> Path:
    """Path of `crohme-offline.zip`."""
    path = _crohme_folder() / "crohme-offline.zip"
    if not path.is_file():
        pytest.skip("CROHME's offline images are not here: point ABM_HF_CROHME at a folder with crohme-offline.zip")
    return path


@pytest.fixture(scope="session")
def crohme_inkml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the unpacked `crohme` folder (`train/<origin>`, `test2013`, `test2014`)."""
    folder = _crohme_folder()
    if (folder / "crohme").is_dir():
        return folder / "crohme"
    archive = folder / "crohme-inkml.tar.xz"
    if not archive.is_file():
        pytest.skip("CROHME's ink is not here: point ABM_HF_CROHME at a folder with crohme-inkml.tar.xz")
    unpacked = tmp_path_factory.mktemp("inkml")
    # Before 3.11.4, Python 3.11 has no filters.
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, **safely)  # type: ignore[arg-type]
    return unpacked / "crohme"


@pytest.fixture(scope="session")
def tiny_config() -> "ABMConfig":
    """Sizes with which a random model runs in milliseconds."""
    from abm_hf import ABMConfig

    return ABMConfig(
        stem_channels=8,
        block_layers=(1, 2, 1),
        growth_rates=(4, 4, 8),
        hidden_size=16,
        embedding_size=12,
        attention_size=20,
        coverage_kernels=(5, 3),
        encoder_dropout=0.1,
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_config: "ABMConfig") -> Path:
    """A directory for `from_pretrained` with a random model of `tiny_config`, processor and code."""
    import torch

    from abm_hf import ABMForConditionalGeneration
    from abm_hf.hub.publish import save_pretrained

    torch.manual_seed(0)
    return save_pretrained(ABMForConditionalGeneration(tiny_config), tmp_path_factory.mktemp("tiny"))
