"""``pretrain()``: the one cloning phase of every algorithm that starts from demonstrations."""

from __future__ import annotations

import json
import pathlib
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BaseModel

from sb3_swfp.checks import check_arguments
from sb3_swfp.demonstrations import Demonstrations
from sb3_swfp.pretraining import (
    CloningLoss,
    PretrainResult,
    clone_demonstrations,
    fit_normaliser,
    flow_cloning_loss,
)


class CloningAlgorithm(BaseAlgorithm):
    """
    Behaviour cloning for an SB3 algorithm. To be listed before the algorithm's own base class.

    A subclass says which network is cloned (``_network_to_clone``), by which loss (``_cloning_loss``), where
    demonstrations come from (``_demonstrations_for_pretraining``), and what follows (``_after_cloning``).
    """

    #: Whether the policy started as a clone
    is_pretrained: bool = False
    gamma: float
    #: What ``pretrain`` was given, or ``None`` -> demonstrations that fit the spaces. Only declared, since the
    #: algorithm's own base class, which comes later in the order of resolution, may have it
    _demonstrations_for_pretraining: Callable[[Any], Demonstrations]
    #: What ``pretrain`` was given, and what came of it -> kept for ``learn``, once they are cloned; likewise
    _keep_demonstrations: Callable[[Any, Demonstrations], None]
    _cloning_loss: CloningLoss = staticmethod(flow_cloning_loss)

    def pretrain(
        self,
        demonstrations: Any = None,
        gradient_steps: int = 5000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.1,
        patience: int = 1000,
        progress_bar: bool = False,
        tb_log_name: str | None = None,
    ) -> PretrainResult:
        """
        Clone demonstrations, with early stopping on held-out episodes. A ``VecNormalize`` that has seen no data yet
        takes its statistics from the demonstrations.

        :param demonstrations: Anything :func:`load_demonstrations` takes; those that the model was created with when
            omitted. A ``DemonstrationReplayBuffer`` that has none yet keeps these in play
        :param gradient_steps: Most gradient steps to run
        :param batch_size: Transitions per gradient step; each block of a flow sees all of them
        :param learning_rate: AdamW's learning rate
        :param validation_fraction: Share of the episodes that is held out for early stopping
        :param patience: Stop after so many gradient steps without a better validation loss
        :param progress_bar: Show a progress bar
        :param tb_log_name: Name of the TensorBoard run; by default the class's name and ``_pretrain``
        :return: Losses and the step whose weights were kept
        :raises ValueError: if there are no demonstrations, or they don't fit the environment
        """
        check_arguments(gradient_steps=gradient_steps, batch_size=batch_size, patience=patience)
        data = self._demonstrations_for_pretraining(demonstrations)
        fit_normaliser(self._vec_normalize_env, data, self.gamma)
        result = clone_demonstrations(
            self,
            self._network_to_clone(),
            data,
            gradient_steps,
            batch_size,
            learning_rate,
            validation_fraction,
            patience,
            progress_bar,
            tb_log_name or f"{type(self).__name__}_pretrain",
            self._cloning_loss,
        )
        self.is_pretrained = True
        self._keep_demonstrations(demonstrations, data)
        self._after_cloning(data)
        return result

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        As SB3's: networks and optimisers, and nothing else of a file. That they are a clone's is not among them, so
        ``learn()`` would treat them as if they had been trained from scratch: a warning says so. ``load`` has it all.

        :param load_path_or_dict: File, or its parameters
        :param exact_match: Whether all parameters must be there, and no more
        :param device: Device to load to
        """
        super().set_parameters(load_path_or_dict, exact_match, device)
        if not self.is_pretrained and not isinstance(load_path_or_dict, dict) and _is_clones(load_path_or_dict):
            warnings.warn(
                "set_parameters() takes a clone's networks, but not that they are a clone's: learn() will begin as "
                f"from scratch. To fine-tune it: {type(self).__name__}.load({str(load_path_or_dict)!r}, env=env)",
                stacklevel=2,
            )

    def _network_to_clone(self) -> BaseModel:
        """The network that is trained on demonstrations, in place."""
        raise TypeError(f"{type(self).__name__} does not say which network is cloned")

    def _after_cloning(self, data: Demonstrations) -> None:
        """
        Called once the network is a clone; ``is_pretrained`` is set.

        :param data: The demonstrations
        """


def _is_clones(path: Any) -> bool:
    """Whether a saved model's plain data say so: nothing is unpickled for it."""
    if not isinstance(path, (str, pathlib.Path)):
        return False
    path = pathlib.Path(path)
    with zipfile.ZipFile(path if path.exists() else f"{path}.zip") as archive:  # as SB3 looks for it
        return (
            bool(json.loads(archive.read("data")).get("is_pretrained", False))
            if "data" in archive.namelist()
            else False
        )
