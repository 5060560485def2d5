"""
Values of many candidate actions per state, without gradients: what a clone's critic update spends most of its time on.

LayerNorm before each activation, as :class:`~sb3_swfp.critics.EnsembleQNetwork` has it, takes several passes over
every hidden layer and writes fresh memory. Where nothing is differentiated fewer do, in place: the mean over a layer's
units is linear in its input, so weights with it taken out once leave nothing to subtract from any row; and dividing by
the positive deviation commutes with ReLU and with the next product, so that after the last hidden layer it is left to
the one number that remains of each row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_swfp.critics import LAYER_NORM_EPS, EnsembleQNetwork, SoftQEnsemble

#: Actions that are valued at a time on the CPU: so many rows of a few critics' hidden layers are reused memory, mostly
#: in a core's own cache, where thousands are fresh memory from the system in every call
_ACTIONS_AT_A_TIME = 256


class _Centred(NamedTuple):
    """An ensemble's weights, the hidden layers' less their means over the layer's units; critics first."""

    first_weight: th.Tensor
    first_bias: th.Tensor
    weights: list[th.Tensor]
    biases: list[th.Tensor]


@th.no_grad()
def candidate_values(
    critic: SoftQEnsemble, features: th.Tensor, actions: th.Tensor, members: th.Tensor | None = None
) -> th.Tensor:
    """
    What :meth:`~sb3_swfp.critics.SoftQEnsemble.q_values` says, for many actions per state and without gradients.

    :param critic: The ensemble
    :param features: State features, ``[B, features_dim]``
    :param actions: Scaled actions, ``M`` of each state in a row, ``[B * M, action_dim]``
    :param members: Indices of the critics to evaluate, all when omitted
    :return: Q values, ``[E, B * M]`` (or ``[len(members), B * M]``)
    """
    network = critic.q_networks
    # A subclass may say otherwise what an action is worth
    own = type(network) is not EnsembleQNetwork or type(critic).q_values is not SoftQEnsemble.q_values
    if own or actions.device.type != "cpu" or not network.layer_norm:
        return critic.q_values(features, actions, members)
    centred = _centre(network, members)
    n_states, per_state = len(features), len(actions) // len(features)
    state = F.linear(features, centred.first_weight[:, : features.shape[1]], centred.first_bias)
    action_weight = centred.first_weight[:, features.shape[1] :]
    values = actions.new_empty(len(centred.weights[0]), len(actions))
    at_a_time = max(_ACTIONS_AT_A_TIME // per_state, 1)
    for first in range(0, n_states, at_a_time):
        of_states = state[first : first + at_a_time]
        rows = slice(first * per_state, (first + len(of_states)) * per_state)
        hidden = F.linear(actions[rows], action_weight)
        hidden.view(len(of_states), per_state, -1).add_(of_states.unsqueeze(1))
        values[:, rows] = _upper_layers(hidden.view(len(hidden), len(values), -1), centred)
    return values.mul_(critic.scale)


def _upper_layers(hidden: th.Tensor, centred: _Centred) -> th.Tensor:
    """First hidden layer, ``[R, E, H]``, overwritten -> ``[E, R]``."""
    last = len(centred.weights) - 1
    for depth, (weight, bias) in enumerate(zip(centred.weights, centred.biases, strict=True)):
        # The rows are centred, so their mean square is their variance
        variance = th.linalg.vector_norm(hidden, dim=-1, keepdim=True).square_().mul_(1.0 / hidden.shape[-1])
        factor = variance.add_(LAYER_NORM_EPS).rsqrt_()
        F.relu_(hidden)
        if depth < last:  # the next layer's bias and variance need it
            hidden.mul_(factor)
        if depth == 0:
            hidden, factor = hidden.transpose(0, 1), factor.transpose(0, 1)
        hidden = th.baddbmm(bias, hidden, weight) if depth < last else th.bmm(hidden, weight).mul_(factor).add_(bias)
    return hidden.squeeze(-1)


def _centre(network: EnsembleQNetwork, members: th.Tensor | None) -> _Centred:
    first_weight = network.first_weight.view(network.n_critics, -1, network.first_weight.shape[1])
    first_bias = network.first_bias.view(network.n_critics, -1)
    weights, biases = list(network.weights), list(network.biases)
    if members is not None and len(members) < network.n_critics:
        first_weight, first_bias = first_weight[members], first_bias[members]
        weights, biases = [weight[members] for weight in weights], [bias[members] for bias in biases]
    first_weight = first_weight - first_weight.mean(dim=1, keepdim=True)
    first_bias = first_bias - first_bias.mean(dim=1, keepdim=True)
    # The last layer's one unit is the value itself
    weights[:-1] = [weight - weight.mean(dim=2, keepdim=True) for weight in weights[:-1]]
    biases[:-1] = [bias - bias.mean(dim=2, keepdim=True) for bias in biases[:-1]]
    return _Centred(first_weight.flatten(0, 1), first_bias.flatten(), weights, biases)
