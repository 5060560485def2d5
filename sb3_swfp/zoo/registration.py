"""What RL Zoo has to know of this package's algorithms: their classes, hyperparameters, search spaces."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

#: Names on the Zoo's command line (``--algo``), and where the classes are
ALGORITHMS = {
    "swfp": "sb3_swfp.swfp.SWFP",
    "swfp_kl": "sb3_swfp.baselines.swfp_kl.SWFPKL",
    "rlpd": "sb3_swfp.baselines.rlpd.RLPD",
    "calql": "sb3_swfp.baselines.calql.CalQL",
    "ibrl": "sb3_swfp.baselines.ibrl.IBRL",
    "dppo": "sb3_swfp.baselines.dppo.DPPO",
    "clone_sac": "sb3_swfp.baselines.clone_sac.CloneSAC",
}
#: Modules of the Zoo that are completed, in the order in which they import each other
ZOO_MODULES = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager")


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """
    Import an algorithm.

    :param name: One of ``ALGORITHMS``
    :return: Its class
    """
    module, _, attribute = ALGORITHMS[name].rpartition(".")
    return getattr(import_module(module), attribute)


def register() -> None:
    """
    Make RL Zoo know this package's algorithms; calling it again changes nothing.

    :raises ImportError: if RL Zoo is not installed
    """
    try:
        modules = [import_module(name) for name in ZOO_MODULES]
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "rl_zoo3":
            raise ImportError('RL Zoo is not installed: pip install "sb3-swfp[zoo]"') from error
        raise
    for module in modules:
        complete(module)


def complete(module: ModuleType) -> None:
    """
    Complete one of the Zoo's modules, once it is imported.

    :param module: One of ``ZOO_MODULES``
    """
    name = module.__name__
    if name == "rl_zoo3.utils":
        module.ALGOS.update({algorithm: algorithm_class(algorithm) for algorithm in ALGORITHMS})
        from sb3_swfp.zoo.hub import complete_hub

        complete_hub(import_module("huggingface_sb3"), import_module("huggingface_sb3.push_to_hub"))
    elif name == "rl_zoo3.hyperparams_opt":
        from sb3_swfp.zoo import tuning

        module.HYPERPARAMS_SAMPLER.update(tuning.SAMPLERS)
        module.HYPERPARAMS_CONVERTER.update(tuning.CONVERTERS)
    elif name == "rl_zoo3.exp_manager":
        from sb3_swfp.zoo.manager import extend

        extend(module)


def config_path(algorithm: str = "swfp") -> Path:
    """
    The hyperparameters' file: ``hyperparams/`` in the installed package, or at the top of a checkout.

    :param algorithm: Name of the algorithm on the Zoo's command line
    :raises FileNotFoundError: if it is in neither place
    """
    package = Path(sys.modules["sb3_swfp"].__file__ or "").resolve().parent
    places = [folder / "hyperparams" / f"{algorithm}.yml" for folder in (package, package.parent)]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"No hyperparameters for {algorithm}: neither {places[0]} nor {places[1]} is there")
