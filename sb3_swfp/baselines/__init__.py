"""
Baselines on this package's demonstrations, critics and buffers, each an SB3 algorithm in its own right.

``docs/baselines.md`` says where their published settings come from, and in what they differ from their originals.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sb3_swfp.baselines.calql import CalQL
    from sb3_swfp.baselines.clone_sac import CloneSAC
    from sb3_swfp.baselines.dppo import DPPO
    from sb3_swfp.baselines.ibrl import IBRL
    from sb3_swfp.baselines.rlpd import RLPD
    from sb3_swfp.baselines.swfp_kl import SWFPKL

__all__ = ["DPPO", "IBRL", "RLPD", "SWFPKL", "CalQL", "CloneSAC"]

_HOMES = {
    "CalQL": "calql",
    "CloneSAC": "clone_sac",
    "DPPO": "dppo",
    "IBRL": "ibrl",
    "RLPD": "rlpd",
    "SWFPKL": "swfp_kl",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """
        Load a baseline on first use.

        :param name: attribute that the module does not have yet
        :return: the class of that name
        :raises AttributeError: there is no such baseline
        """
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value  # found directly from now on
        return value


def __dir__() -> list[str]:
    """:return: all names, including those not loaded yet (for tab completion)"""
    return sorted({*globals(), *__all__})
