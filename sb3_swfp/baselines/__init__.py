"""
Baselines on this package's demonstrations, critics and buffers, each an SB3 algorithm in its own right.

``docs/baselines.md`` says where their published settings come from, and in what they differ from their originals.
"""

from typing import TYPE_CHECKING

from sb3_swfp.lazy import lazy_names

if TYPE_CHECKING:
    from sb3_swfp.baselines.calql import CalQL
    from sb3_swfp.baselines.calql_hindsight import HindsightCalQL
    from sb3_swfp.baselines.clone_sac import CloneSAC
    from sb3_swfp.baselines.dppo import DPPO
    from sb3_swfp.baselines.ibrl import IBRL
    from sb3_swfp.baselines.rlpd import RLPD
    from sb3_swfp.baselines.swfp_kl import SWFPKL

__all__ = ["DPPO", "IBRL", "RLPD", "SWFPKL", "CalQL", "CloneSAC", "HindsightCalQL"]

_HOMES = {
    "CalQL": "calql",
    "CloneSAC": "clone_sac",
    "DPPO": "dppo",
    "HindsightCalQL": "calql_hindsight",
    "IBRL": "ibrl",
    "RLPD": "rlpd",
    "SWFPKL": "swfp_kl",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
