"""Demonstrations: one data type, one reader a format, and the replay buffer that keeps demonstrations in play.

The replay buffer is exported lazily, because it alone needs torch and Stable-Baselines3; reading data does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_swfp.demonstrations.readers import load_demonstrations
from sb3_swfp.demonstrations.types import Demonstrations, Episode

if TYPE_CHECKING:
    from sb3_swfp.demonstrations.buffers import DemonstrationReplayBuffer, NStepDictReplayBuffer

__all__ = [
    "DemonstrationReplayBuffer",
    "Demonstrations",
    "Episode",
    "NStepDictReplayBuffer",
    "load_demonstrations",
]

_LAZY = {"DemonstrationReplayBuffer", "NStepDictReplayBuffer"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module("sb3_swfp.demonstrations.buffers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | _LAZY)
