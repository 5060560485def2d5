"""What RL Zoo has to know of SWFP: its class, its hyperparameters, its search space."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ALGORITHM = "swfp"
#: Modules of the Zoo that are completed, in the order in which they import each other
ZOO_MODULES = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager")


def register() -> None:
    """
    Make RL Zoo know SWFP; calling it again changes nothing.

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
        from sb3_swfp.swfp import SWFP

        module.ALGOS[ALGORITHM] = SWFP
    elif name == "rl_zoo3.hyperparams_opt":
        from sb3_swfp.zoo import tuning

        module.HYPERPARAMS_SAMPLER[ALGORITHM] = tuning.sample_swfp_params
        module.HYPERPARAMS_CONVERTER[ALGORITHM] = tuning.convert_swfp_params
    elif name == "rl_zoo3.exp_manager":
        from sb3_swfp.zoo.manager import extend

        extend(module)


def config_path(algorithm: str = ALGORITHM) -> Path:
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
