"""
Stepwise flow policies (SWFP) on Stable-Baselines3.

Importing the package is cheap: PyTorch, Stable-Baselines3 and Gymnasium are loaded when a name that needs them is first
used (PEP 562), so that command-line tools and start-up hooks may import it freely.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

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
    "SWFP": "sb3_swfp.swfp",
    "DemonstrationReplayBuffer": "sb3_swfp.demonstrations",
    "Demonstrations": "sb3_swfp.demonstrations",
    "Episode": "sb3_swfp.demonstrations",
    "FlowActorCriticPolicy": "sb3_swfp.policies",
    "load_demonstrations": "sb3_swfp.demonstrations",
}
_SUBMODULES = frozenset({"transport"})


# Hidden from type checkers, which would otherwise accept any name at all as an attribute of this module.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """
        Load a public name on first use.

        :param name: attribute that the module does not have yet
        :return: the class, function or module of that name
        :raises AttributeError: the package has no such public name
        """
        if name in _SUBMODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # found directly from now on
        return value


def __dir__() -> list[str]:
    """:return: all names, including those not loaded yet (for tab completion)"""
    return sorted({*globals(), *__all__})
