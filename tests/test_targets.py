"""The critic's target: the value of the policy as it acts, with a critic that is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from tiny import metrics, tiny_model

from sb3_swfp import SWFP


def model_with_known_critic(monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> SWFP:
    """Q = 1 - a^2 + member, for every state, with three critics."""
    model = tiny_model(policy_kwargs={"n_critics": 3}, **kwargs)

    def q_values(_: th.Tensor, actions: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        chosen = th.arange(3) if members is None else members
        return 1.0 - actions.square().sum(dim=-1) + chosen[:, None]

    monkeypatch.setattr(model.critic_target, "q_values", q_values)
    return model


def mean_value(model: SWFP, ripe: bool, ent_coef: float = 0.0) -> float:
    model.policy.critic_is_ripe.fill_(ripe)
    th.manual_seed(0)
    with th.no_grad():
        values = model._next_values(th.zeros(2000, 3), ent_coef)
    assert values.shape == (2000,)
    return float(values.mean())


def test_best_of_the_candidates_once_the_critic_is_ripe(monkeypatch: pytest.MonkeyPatch) -> None:
    one = model_with_known_critic(monkeypatch)
    four = model_with_known_critic(monkeypatch, target_candidates=4)
    many = model_with_known_critic(monkeypatch, target_candidates=64)
    single = mean_value(one, ripe=True)
    assert mean_value(four, ripe=False) == mean_value(many, ripe=False) == single
    assert single + 0.1 < mean_value(four, ripe=True) < mean_value(many, ripe=True)
    # The best of 64 comes near 1; the least of a random pair of members adds 0 twice in three draws and 1 else
    assert mean_value(many, ripe=True) % 1.0 == pytest.approx(1.0, abs=0.02)


def test_the_picked_particle_s_own_entropy_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log-probability, not another particle's: with a huge temperature the least likely one is picked."""
    model = model_with_known_critic(monkeypatch, target_candidates=16)
    one = model_with_known_critic(monkeypatch)
    assert mean_value(model, ripe=True, ent_coef=100.0) > mean_value(one, ripe=True, ent_coef=100.0) + 50.0


@pytest.mark.parametrize("n_critics", [1, 2, 5])
def test_trains_with_any_number_of_critics(n_critics: int) -> None:
    model = tiny_model(target_candidates=3, policy_kwargs={"n_critics": n_critics}).learn(60)
    assert model.policy.critic_is_ripe
    assert np.isfinite(list(metrics(model).values())).all()
