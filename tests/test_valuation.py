"""Candidates are valued as the critics value them, only faster."""

from __future__ import annotations

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_swfp.critics import EnsembleQNetwork, SoftQEnsemble
from sb3_swfp.valuation import candidate_values

OBSERVATIONS, ACTIONS = spaces.Box(-1.0, 1.0, (5,)), spaces.Box(-1.0, 1.0, (3,))


def ensemble(net_arch: list[int] | None = None, n_critics: int = 4, layer_norm: bool = True) -> SoftQEnsemble:
    th.manual_seed(0)
    critic = SoftQEnsemble(
        OBSERVATIONS,
        ACTIONS,
        net_arch or [32, 16],
        FlattenExtractor(OBSERVATIONS),
        features_dim=5,
        n_critics=n_critics,
        layer_norm=layer_norm,
    )
    critic.scale.fill_(7.0)
    return critic


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("net_arch", [[32], [32, 16], [16, 32, 8]])
@pytest.mark.parametrize("members", [None, [3], [2, 0], [0, 1, 2, 3]])
@pytest.mark.parametrize(("n_states", "m"), [(1, 1), (300, 1), (100, 7), (3, 600)])
def test_values_are_the_critics(
    net_arch: list[int], layer_norm: bool, members: list[int] | None, n_states: int, m: int
) -> None:
    critic = ensemble(net_arch, layer_norm=layer_norm)
    chosen = None if members is None else th.tensor(members)
    # Features far from 0, as from environments that nobody normalised
    features, actions = 20.0 + 5.0 * th.randn(n_states, 5), th.rand(n_states * m, 3) * 2 - 1
    with th.no_grad():
        expected = critic.q_values(features, actions, chosen)
    found = candidate_values(critic, features, actions, chosen)
    assert found.shape == (4 if members is None else len(members), n_states * m)
    th.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_there_are_no_gradients_and_nothing_is_overwritten(layer_norm: bool) -> None:
    critic = ensemble(layer_norm=layer_norm)
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    features, actions = th.randn(4, 5), th.rand(8, 3, requires_grad=True)
    copies = features.clone(), actions.detach().clone()
    assert not candidate_values(critic, features, actions).requires_grad
    assert th.equal(features, copies[0]) and th.equal(actions.detach(), copies[1])
    assert all(th.equal(value, before[name]) for name, value in critic.state_dict().items())


def test_the_package_s_own_critics_are_not_asked_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = ensemble()
    monkeypatch.setattr(critic, "q_values", None)
    assert candidate_values(critic, th.randn(4, 5), th.rand(8, 3)).shape == (4, 8)


def test_a_network_of_one_s_own_is_asked_itself() -> None:
    class Constant(EnsembleQNetwork):
        def forward(self, features: th.Tensor, actions: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
            return th.full((self.n_critics, len(actions)), 2.0)

    critic = ensemble()
    critic.q_networks = Constant(8, 4, [32], True)
    assert candidate_values(critic, th.randn(4, 5), th.rand(8, 3)).eq(14.0).all()


def test_an_ensemble_of_one_s_own_is_asked_itself() -> None:
    class Constant(SoftQEnsemble):
        def q_values(self, features: th.Tensor, actions: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
            return th.full((4, len(actions)), 3.0)

    critic = ensemble()
    critic.__class__ = Constant
    assert candidate_values(critic, th.randn(4, 5), th.rand(8, 3)).eq(3.0).all()


def test_a_layer_without_differences_is_worth_its_bias() -> None:
    """LayerNorm of equal units is 0, not a division by 0."""
    critic = ensemble([16])
    for parameter in critic.q_networks.parameters():
        parameter.data.fill_(0.5)
    found = candidate_values(critic, th.ones(3, 5), th.ones(6, 3))
    th.testing.assert_close(found, th.full((4, 6), 3.5))
