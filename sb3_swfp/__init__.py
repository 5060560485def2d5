"""
Stepwise flow policies (SWFP) on Stable-Baselines3.

Importing the package is cheap: PyTorch, Stable-Baselines3 and Gymnasium are loaded when a name that needs them is first
used (PEP 562), so that command-line tools and start-up hooks may import it freely.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sb3_swfp.lazy import lazy_names

if TYPE_CHECKING:
    from sb3_swfp import transport
    from sb3_swfp.demonstrations import DemonstrationReplayBuffer, Demonstrations, Episode, load_demonstrations
    from sb3_swfp.policies import FlowActorCriticPolicy
    from sb3_swfp.swfp import SWFP

__all__ = [
    "SWFP",
    "DemonstrationReplayBuffer",
    "Demonstrations",
    "Episode",
    "FlowActorCriticPolicy",
    "load_demonstrations",
    "transport",
]

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

# The module that each public name lives in.
_HOMES = {
    "SWFP": "swfp",
    "DemonstrationReplayBuffer": "demonstrations",
    "Demonstrations": "demonstrations",
    "Episode": "demonstrations",
    "FlowActorCriticPolicy": "policies",
    "load_demonstrations": "demonstrations",
    "transport": "transport",
}


# Hidden from type checkers, which would otherwise accept any name at all as an attribute of this module.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
