"""
Toy environments whose answers are known, registered with Gymnasium when this package is imported.

RL Zoo's commands find them with ``--gym-packages sb3_swfp.envs``. ``docs/toys.md`` describes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gymnasium.envs.registration import register

from sb3_swfp.lazy import lazy_names

if TYPE_CHECKING:
    from sb3_swfp.envs.bandit import Bandit, ShiftingBandit
    from sb3_swfp.envs.navigation import Navigation, ShiftingNavigation, navigation_demonstrations

__all__ = ["Bandit", "Navigation", "ShiftingBandit", "ShiftingNavigation", "navigation_demonstrations"]

_HOMES = {
    "Bandit": "bandit",
    "Navigation": "navigation",
    "ShiftingBandit": "bandit",
    "ShiftingNavigation": "navigation",
    "navigation_demonstrations": "navigation",
}

# Strings, so that an environment is imported when it is first made
register("SWFP-Bandit-v0", entry_point="sb3_swfp.envs.bandit:Bandit")
register("SWFP-BanditShifting-v0", entry_point="sb3_swfp.envs.bandit:ShiftingBandit")
register("SWFP-Navigation-v0", entry_point="sb3_swfp.envs.navigation:Navigation", max_episode_steps=150)
register("SWFP-NavigationShifting-v0", entry_point="sb3_swfp.envs.navigation:ShiftingNavigation", max_episode_steps=150)


if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
