"""The soft-Q ensemble: several critics in one stacked network."""

from __future__ import annotations

import math

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

#: Added to the variance in LayerNorm
LAYER_NORM_EPS = 1e-5
#: From this many features on, the gradient in the actions alone pays for a product of its own (at 256 rows: 0.36 ms
#: against 0.43 ms with 11 features, but 1.95 ms against 1.28 ms with 348)
_SPLIT_DIM = 128


class EnsembleQNetwork(nn.Module):
    """
    ``E`` multi-layer perceptrons ``Q_e(s, a)`` with stacked weights: one batched product per layer.

    LayerNorm before each activation bounds how far a critic extrapolates on unseen actions; RLPD (Ball et al., arXiv
    2302.02948, section 4.2) found it decisive with demonstrations. It has no learned scale: the next layer absorbs it.

    :param input_dim: Dimension of the concatenated state features and action
    :param n_critics: Number of critics ``E``
    :param net_arch: Hidden widths
    :param layer_norm: Normalise every hidden layer
    """

    def __init__(self, input_dim: int, n_critics: int, net_arch: list[int], layer_norm: bool):
        super().__init__()
        self.n_critics, self.layer_norm = n_critics, layer_norm
        sizes = [input_dim, *net_arch, 1]
        # The first layer has the same input for every critic: one plain product, no batch
        self.first_weight = nn.Parameter(th.empty(n_critics * sizes[1], input_dim))
        self.first_bias = nn.Parameter(th.empty(n_critics * sizes[1]))
        self.weights = nn.ParameterList(th.empty(n_critics, m, n) for m, n in zip(sizes[1:-1], sizes[2:], strict=True))
        self.biases = nn.ParameterList(th.empty(n_critics, 1, n) for n in sizes[2:])
        for fan_in, weight, bias in (
            (input_dim, self.first_weight, self.first_bias),
            *zip(sizes[1:-1], self.weights, self.biases, strict=True),
        ):
            nn.init.uniform_(weight, -1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in))
            nn.init.uniform_(bias, -1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in))

    def forward(self, features: th.Tensor, actions: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        """
        :param features: State features, ``[B, features_dim]``; or ``[B / M, features_dim]``, each row serving M actions
        :param actions: Scaled actions, ``[B, action_dim]``
        :param members: Indices of the critics to evaluate, all when omitted
        :return: Q values, ``[E, B]`` (or ``[len(members), B]``)
        """
        first_weight: th.Tensor = self.first_weight
        first_bias: th.Tensor = self.first_bias
        weights, biases = list(self.weights), list(self.biases)
        n_members = self.n_critics
        if members is not None and len(members) < self.n_critics:
            n_members = len(members)
            first_weight = first_weight.view(self.n_critics, -1, first_weight.shape[1])[members].flatten(0, 1)
            first_bias = first_bias.view(self.n_critics, -1)[members].flatten()
            weights, biases = [w[members] for w in weights], [b[members] for b in biases]
        # Critics second until after the normalisation, which would copy a transposed batch: the products take it as is
        hidden = _first_layer(features, actions, first_weight, first_bias).view(len(actions), n_members, -1)
        for depth, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if self.layer_norm:
                hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=LAYER_NORM_EPS)
            hidden = F.relu(hidden)
            hidden = th.baddbmm(bias, hidden.transpose(0, 1) if depth == 0 else hidden, weight)
        return hidden.squeeze(-1)


def _first_layer(features: th.Tensor, actions: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """``[features, actions] @ weight.T + bias``, whichever way is cheapest."""
    n, features_dim = features.shape
    if n != len(actions):
        # The state's share is the same for all of its actions
        state = F.linear(features, weight[:, :features_dim], bias)
        if n == 1:
            return F.linear(actions, weight[:, features_dim:], state[0])
        hidden = F.linear(actions, weight[:, features_dim:])
        return (hidden.view(n, len(actions) // n, -1) + state.unsqueeze(1)).flatten(0, 1)
    if actions.requires_grad and not features.requires_grad and features_dim >= _SPLIT_DIM:
        # One product would also take the gradient in the features, and throw it away
        state = F.linear(features, weight[:, :features_dim], bias)
        return th.addmm(state, actions, weight[:, features_dim:].t())
    return F.linear(th.cat([features, actions], dim=1), weight, bias)


class SoftQEnsemble(BaseModel):
    """
    Soft-Q critic ensemble with SB3's feature extraction.

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Hidden widths
    :param features_extractor: Network that turns observations into features
    :param features_dim: Dimension of the features
    :param normalize_images: Whether to divide images by 255
    :param n_critics: Number of critics
    :param layer_norm: Normalise every hidden layer
    :param share_features_extractor: Whether the extractor belongs to the actor, and the critic's loss must not train it
    :raises ValueError: if there is no critic, or no hidden layer
    """

    features_extractor: BaseFeaturesExtractor
    scale: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        normalize_images: bool = True,
        n_critics: int = 2,
        layer_norm: bool = True,
        share_features_extractor: bool = False,
    ):
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        if n_critics < 1:
            raise ValueError(f"n_critics must be at least 1, got {n_critics}")
        if not net_arch:
            raise ValueError("The critic needs at least one hidden layer: net_arch=[] has none")
        self.n_critics, self.share_features_extractor = n_critics, share_features_extractor
        self.q_networks = EnsembleQNetwork(features_dim + get_action_dim(action_space), n_critics, net_arch, layer_norm)
        # Q = scale * network. Adam moves an output by about the learning rate a step, so a network that must first
        # climb to returns in the hundreds stays unripe for thousands of steps, whatever its gradient says
        self.register_buffer("scale", th.tensor(1.0))

    def features(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: Observations, as SB3's replay buffers return them
        :return: Features, ``[B, features_dim]``, detached if the extractor is shared with the actor
        """
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            return self.extract_features(observations, self.features_extractor)

    def forward(self, observations: PyTorchObs, actions: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        """
        :param observations: Observations
        :param actions: Scaled actions, ``[B, action_dim]``
        :param members: Indices of the critics to evaluate, all when omitted
        :return: Q values, ``[n_critics, B]``
        """
        return self.q_values(self.features(observations), actions, members)

    def q_values(self, features: th.Tensor, actions: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        """
        :param features: Features, ``[B, features_dim]``; or ``[B / M, features_dim]``, each row serving M actions
        :param actions: Scaled actions, ``[B, action_dim]``
        :param members: Indices of the critics to evaluate, all when omitted
        :return: Q values, ``[n_critics, B]``
        """
        return self.scale * self.q_networks(features, actions, members)
