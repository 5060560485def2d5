"""What DAPG's authors pickled in 2018 (github.com/aravindr93/hand_dapg), read without their packages."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def read_pickle(path: Path) -> Any:
    """
    Unpickle arrays and what holds them; no function of the file's choice is called. (NumPy trusts the bytes that it
    makes arrays of, so the file should be a known one.)

    :param path: A file of hand_dapg
    :return: Its content; objects of mjrl and of old PyTorch modules come as bare holders of their attributes
    :raises ValueError: if it is no pickle or asks for anything else
    """
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except Exception as error:  # damaged pickles raise whatever their bytes lead to
        raise ValueError(f"cannot read {path}: {error}") from error


def expert(policy: Any) -> Callable[[np.ndarray], np.ndarray]:
    """
    The mean of a policy of mjrl: two layers of tanh between shifted and scaled observations and actions.

    :param policy: As ``read_pickle`` gives it
    :return: Observation ``[obs_dim]`` to action ``[action_dim]``, not clipped, in double precision
    :raises ValueError: if it is another kind of policy
    """
    try:
        first, first_bias, second, second_bias, last, last_bias = (
            parameter.detach().double().numpy() for parameter in policy.trainable_params[:6]
        )
        names = ("in_shift", "in_scale", "out_shift", "out_scale")
        in_shift, in_scale, out_shift, out_scale = (getattr(policy.model, name).double().numpy() for name in names)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"not a policy of mjrl with two hidden layers: {error}") from error

    def act(observation: np.ndarray) -> np.ndarray:
        hidden = np.tanh((observation - in_shift) / (in_scale + 1e-8) @ first.T + first_bias)
        hidden = np.tanh(hidden @ second.T + second_bias)
        return (hidden @ last.T + last_bias) * out_scale + out_shift

    return act


class _Holder:
    """In place of a class that is not needed: takes any arguments and keeps the attributes."""

    def __init__(self, *arguments: Any) -> None:
        pass


class _ArraysOnly(pickle.Unpickler):
    """Knows arrays and tensors; takes ``_Holder`` for modules of networks, and refuses all else."""

    _ALLOWED = {
        "collections": ("OrderedDict",),
        "numpy": ("ndarray", "dtype"),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "torch._utils": ("_rebuild_tensor_v2", "_rebuild_parameter"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if name in self._ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_storage
        # The non-linearity is stored as getattr(torch._C._VariableFunctions, "tanh")
        if module.startswith(("mjrl.", "torch.nn.")) or (module, name) in (
            ("builtins", "getattr"),
            ("torch._C", "_VariableFunctions"),
        ):
            return _Holder
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")


def _load_storage(data: bytes) -> Any:
    import torch as th

    return th.load(io.BytesIO(data), weights_only=True)
