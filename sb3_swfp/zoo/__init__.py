"""
SWFP and its baselines in RL Zoo: ``--algo swfp`` in the Zoo's unmodified commands.

Installing the package registers them by itself, through a start-up hook (``sb3_swfp_zoo.pth``). :func:`register` does
the same by hand, and ``python -m sb3_swfp.zoo train ...`` is for machines where ``.pth`` files are forbidden.
"""

from sb3_swfp.zoo.registration import config_path, register

__all__ = ["config_path", "register"]
