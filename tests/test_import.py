"""The package's public face: light to import, complete, and in step with its changelog."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_swfp

REPOSITORY = Path(__file__).resolve().parent.parent

HEAVY = ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "rl_zoo3", "numpy", "mujoco", "ot")
OPTIONAL = ("gymnasium_robotics", "h5py", "imageio", "minari", "rl_zoo3")


def loaded_after(statement: str, candidates: tuple[str, ...]) -> list[str]:
    """
    :param statement: Python code to run in a fresh interpreter
    :param candidates: top-level modules to look for
    :return: those of the candidates that the interpreter had loaded at the end
    """
    code = f"import json, sys\n{statement}\nprint(json.dumps([name for name in {candidates!r} if name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("statement", ["import sb3_swfp", "import sb3_swfp; sb3_swfp.__version__; dir(sb3_swfp)"])
def test_import_is_light(statement: str) -> None:
    assert loaded_after(statement, HEAVY) == []


def test_the_probe_sees_what_is_loaded() -> None:
    """Without this, a typing error in the probe would make every test of lightness pass."""
    assert loaded_after("from sb3_swfp import transport", ("torch", "json")) == ["torch", "json"]


def test_optional_packages_wait_until_they_are_needed() -> None:
    statement = f"from sb3_swfp import {', '.join(sb3_swfp.__all__)}"
    assert loaded_after(statement, OPTIONAL) == []


@pytest.mark.parametrize("name", sb3_swfp.__all__)
def test_public_name_resolves(name: str) -> None:
    value = getattr(sb3_swfp, name)
    assert getattr(sb3_swfp, name) is value
    home = getattr(value, "__module__", value.__name__)
    assert home.startswith("sb3_swfp.")
    importlib.import_module(home)


def test_dir_lists_every_public_name() -> None:
    assert {*sb3_swfp.__all__, "__version__"} <= set(dir(sb3_swfp))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'PPO'"):
        _ = sb3_swfp.PPO  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="PPO"):
        exec("from sb3_swfp import PPO")


def test_changelog_starts_with_this_version() -> None:
    lines = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    newest = next(line for line in lines if line.startswith("## "))
    assert newest.split()[2] == sb3_swfp.__version__
