"""What all test modules share: one thread a process, the robotics environments, the real demonstrations."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
import torch

try:
    # Its start-up notice would otherwise be printed after pytest's summary.
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics
except ImportError:
    pass  # the tests that need it skip by themselves
else:
    gym.register_envs(gymnasium_robotics)

# The networks of the tests are tiny: more threads only make the processes of pytest-xdist wait for each other.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def double_precision() -> Iterator[None]:
    """For closed forms: networks of 64 bits, of the same random weights each time."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def shared_minari(monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    Folder of real demonstrations in Minari's format, made the place where Minari looks for its data sets.

    It is named by the environment variable SB3_SWFP_MINARI; without it, ``../shared/minari`` beside the repository is
    tried. The data are not part of the package: a test that asks for them is skipped where they are absent.
    """
    pytest.importorskip("minari", reason='needs minari: pip install "sb3-swfp[minari]"')
    named = os.environ.get("SB3_SWFP_MINARI")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "minari"
    if not folder.is_dir():
        if named:  # asked for by name: a misspelt path must not pass as a skipped test
            pytest.fail(f"SB3_SWFP_MINARI={named} is not a folder")
        pytest.skip(f"no demonstrations at {folder}: name their folder in the environment variable SB3_SWFP_MINARI")
    folder = folder.resolve()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    return folder
