"""The critic's target: the value of the policy as it acts, with critics that are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny import Mirror, goal_demonstrations, goal_env, metrics, mirror_demonstrations, tiny_model, with_demonstrations

from sb3_swfp import SWFP
from sb3_swfp.bounds import bound_action
from sb3_swfp.flows import Sweep
from sb3_swfp.policies import FlowActor

N_STATES = 5000


def known_q_values(actions: th.Tensor) -> th.Tensor:
    """Three critics that want different actions: ``[3, B]``."""
    optima = th.tensor([-0.8, 0.1, 0.9])
    return 1.0 - (actions[:, 0] - optima[:, None]).square() + th.tensor([[0.0], [0.3], [0.1]])


def know(monkeypatch: pytest.MonkeyPatch, model: SWFP, q_values: Callable[..., th.Tensor]) -> None:
    """Let the target's critics be ``q_values``."""
    monkeypatch.setattr(model.critic_target, "q_values", q_values)
    monkeypatch.setattr("sb3_swfp.flow_algorithm.candidate_values", lambda critic, *rest: critic.q_values(*rest))


def model_with_known_critics(monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> SWFP:
    policy_kwargs = {"n_critics": 3} | kwargs.pop("policy_kwargs", {})
    model = tiny_model(policy_kwargs=policy_kwargs, **kwargs)

    def q_values(_: th.Tensor, actions: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        values = known_q_values(actions)
        return values if members is None else values[members]

    know(monkeypatch, model, q_values)
    monkeypatch.setattr(th, "randperm", lambda n: th.tensor([2, 0, 1]))  # the pair that judges
    model.policy.temperature.fill_(1e-8)
    return model


def values(model: SWFP, ripe: bool = True, ent_coef: float = 0.0) -> th.Tensor:
    model.policy.critic_is_ripe.fill_(ripe)
    th.manual_seed(0)
    with th.no_grad():
        found = model._next_values(th.zeros(N_STATES, 3), ent_coef)
    assert found.shape == (N_STATES,)
    return found


def particles(model: SWFP, m: int, actor: FlowActor | None = None) -> th.Tensor:
    """Those that :func:`values` draws."""
    th.manual_seed(0)
    actor = model.actor_average if actor is None else actor
    with th.no_grad():
        features = actor.features(th.zeros(N_STATES, 3))
        return bound_action(actor.cascade.integrate(features, actor.noise(m * N_STATES)).particles[-1])


@pytest.mark.parametrize("order", [[2, 0, 1], [0, 1, 2], [1, 2, 0]])
def test_the_others_pick_and_the_pair_s_minimum_judges(monkeypatch: pytest.MonkeyPatch, order: list[int]) -> None:
    model = model_with_known_critics(monkeypatch, target_candidates=4)
    monkeypatch.setattr(th, "randperm", lambda n: th.tensor(order))
    known = known_q_values(particles(model, 4)).view(3, N_STATES, 4)
    picked = known[order[2]].argmax(dim=1, keepdim=True)
    expected = known[order[:2]].amin(dim=0).gather(1, picked)[:, 0]
    th.testing.assert_close(values(model), expected)


def test_of_five_the_mean_of_three_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with_known_critics(monkeypatch, target_candidates=4, policy_kwargs={"n_critics": 5})
    optima, order = th.tensor([-0.9, -0.4, 0.0, 0.3, 0.8]), [3, 0, 4, 1, 2]

    def q_values(_: th.Tensor, actions: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        known = -(actions[:, 0] - optima[:, None]).abs()
        return known if members is None else known[members]

    know(monkeypatch, model, q_values)
    monkeypatch.setattr(th, "randperm", lambda n: th.tensor(order))
    known = q_values(th.empty(0), particles(model, 4)).view(5, N_STATES, 4)
    picked = known[order[2:]].mean(dim=0).argmax(dim=1, keepdim=True)
    th.testing.assert_close(values(model), known[order[:2]].amin(dim=0).gather(1, picked)[:, 0])


def test_a_pair_alone_picks_and_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with_known_critics(monkeypatch, target_candidates=4, policy_kwargs={"n_critics": 2})
    monkeypatch.setattr(th, "randperm", lambda n: th.tensor([1, 0]))
    known = known_q_values(particles(model, 4))[:2].view(2, N_STATES, 4)
    picked = known.mean(dim=0).argmax(dim=1, keepdim=True)
    th.testing.assert_close(values(model), known.amin(dim=0).gather(1, picked)[:, 0])


@pytest.mark.parametrize(("pretrained", "m"), [(False, 1), (True, 4)])
def test_a_clone_s_target_has_as_many_candidates_as_act(
    monkeypatch: pytest.MonkeyPatch, pretrained: bool, m: int
) -> None:
    model = model_with_known_critics(monkeypatch, policy_kwargs={"n_candidates": 4})
    model.is_pretrained = pretrained
    stated = model_with_known_critics(monkeypatch, target_candidates=m, policy_kwargs={"n_candidates": 4})
    th.testing.assert_close(values(model), values(stated))
    th.testing.assert_close(values(model, ripe=False), known_q_values(particles(model, 1))[[0, 2]].amin(dim=0))


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_clone_s_target_values_the_flow_that_is_trained(
    monkeypatch: pytest.MonkeyPatch, pretrained: bool, m: int
) -> None:
    """From scratch it values the average."""
    model = model_with_known_critics(monkeypatch, target_candidates=m)
    model.is_pretrained = pretrained
    with th.no_grad():
        model.actor.cascade.biases[-1].add_(0.3)
    valued, other = (model.actor, model.actor_average) if pretrained else (model.actor_average, model.actor)
    expected, different = (
        known.gather(2, known[1].argmax(dim=1).expand(3, N_STATES)[..., None])[[0, 2], :, 0].amin(dim=0)
        for known in (known_q_values(particles(model, m, actor)).view(3, N_STATES, m) for actor in (valued, other))
    )
    th.testing.assert_close(values(model), expected)
    assert not th.allclose(values(model), different, atol=1e-3)


class AtTheBound(BaseCallback):
    """Whether ``predict`` gives actions at the bound, asked at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def _on_step(self) -> bool:
        assert isinstance(self.model, SWFP)
        observations = np.full((2, 2), self.n_calls, dtype=np.float32)
        predicted = [self.model.predict(observations, deterministic=d)[0] for d in (False, True)]
        self.found += [bool((self.model.policy.scale_action(action) > 0.9).all()) for action in predicted]
        return True


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("ripe", [False, True])
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_clone_explores_with_the_flow_that_is_trained(
    pretrained: bool, ripe: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked what it would do, it answers with the average, and so do evaluations; from scratch that explores, too."""
    env = DummyVecEnv([lambda: Mirror(length=50)] * 2)
    model = tiny_model(env, learning_starts=0, policy_delay=10_000, critic_warmup=10_000)
    model.is_pretrained = pretrained
    model.policy.critic_is_ripe.fill_(ripe)
    if not fast:
        monkeypatch.setattr(model.policy._numpy_acting, "act", lambda *_: None)
    with th.no_grad():
        model.actor.cascade.biases[-1].add_(10.0)  # up against the bound
    asked = AtTheBound()
    model.learn(20, callback=asked)
    assert model.replay_buffer is not None
    assert bool((model.replay_buffer.actions[:10] > 0.9).all()) == pretrained
    assert len(asked.found) == 20 and np.mean(asked.found) < 0.5


def test_a_clone_from_a_file_explores_with_the_flow_that_is_trained(tmp_path: Path) -> None:
    model = tiny_model(Mirror(length=50), learning_starts=0, policy_delay=10_000, critic_warmup=10_000)
    model.pretrain(mirror_demonstrations(3), gradient_steps=5)
    with th.no_grad():
        model.actor.cascade.biases[-1].add_(10.0)  # up against the bound
    model.save(tmp_path / "clone")
    loaded = SWFP.load(tmp_path / "clone", env=Mirror(length=50)).learn(20)
    assert loaded.replay_buffer is not None and bool((loaded.replay_buffer.actions[:20] > 0.9).all())
    assert loaded.policy.actor_average is loaded.actor_average is not loaded.actor


def test_the_average_acts_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(Mirror(), learning_starts=0)
    model.is_pretrained = True

    average = model.actor_average

    def fail(*_: Any, **__: Any) -> None:
        assert model.policy.actor_average is model.actor
        raise RuntimeError("no action")

    monkeypatch.setattr(model, "predict", fail)
    with pytest.raises(RuntimeError, match="no action"):
        model.learn(20)
    assert model.policy.actor_average is model.actor_average is average


def test_one_particle_until_the_critic_is_ripe(monkeypatch: pytest.MonkeyPatch) -> None:
    one, four = (model_with_known_critics(monkeypatch, target_candidates=m) for m in (1, 4))
    expected = known_q_values(particles(one, 1))[[0, 2]].amin(dim=0)
    th.testing.assert_close(values(four, ripe=False), expected)
    th.testing.assert_close(values(one), expected)


def test_no_more_candidates_than_compete_for_an_action(monkeypatch: pytest.MonkeyPatch) -> None:
    one = model_with_known_critics(monkeypatch)
    capped = model_with_known_critics(monkeypatch, target_candidates=4, policy_kwargs={"n_candidates": 1})
    th.testing.assert_close(values(capped), values(one))


def test_picks_are_as_soft_as_when_acting(monkeypatch: pytest.MonkeyPatch) -> None:
    """At an infinite temperature they are no picks at all, and entropy is that of the particle that was picked."""
    model = model_with_known_critics(monkeypatch, target_candidates=4)
    one = model_with_known_critics(monkeypatch)
    assert values(model).mean() > values(one).mean() + 0.05
    model.policy.temperature.fill_(1e8)
    assert values(model).mean().item() == pytest.approx(values(one).mean().item(), abs=0.04)
    # -log pi in expectation, whichever particle is picked at random
    entropies = [(values(each, ent_coef=1.0) - values(each)).mean().item() for each in (model, one)]
    assert entropies[0] == pytest.approx(entropies[1], abs=0.1)


def test_picks_have_the_entropy_of_the_density_that_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Particles of N(0, I), picked by exp(b x), are of N(b, I), whose entropy is that of N(0, I): what is added to the
    value is 1.42 a dimension. (-log pi at the picks would be larger by b^2 / 2, the divergence of the two.)
    """
    slope, spread = 0.5, 0.2
    model = tiny_model(policy_kwargs={"n_candidates": 256, "n_critics": 2}, target_candidates=256)
    model.policy.critic_is_ripe.fill_(True)
    model.policy.temperature.fill_(1.0)
    cascade = model.actor_average.cascade
    # One block after the other takes x to spread * x, in actions far from the bounds
    rate = spread ** (1.0 / cascade.n_blocks)
    monkeypatch.setattr(
        cascade, "velocity", lambda n, state, x, t, tangents=None: ((rate - 1.0) / cascade.step * x, None)
    )
    monkeypatch.setattr(
        cascade,
        "velocity_and_jacobian",
        lambda blocks, state, x, t, every=1: (
            (rate - 1.0) / cascade.step * x,
            (rate - 1.0) / cascade.step * th.eye(1).expand(*x[:, ::every].shape, 1),
        ),
    )
    know(monkeypatch, model, lambda _, actions, members=None: (slope / spread * actions[:, 0]).expand(2, -1))
    soft, hard = (values(model, ent_coef=ent_coef).mean().item() for ent_coef in (1.0, 0.0))
    assert hard == pytest.approx(slope**2, abs=0.05)
    assert soft - hard == pytest.approx(0.5 * np.log(2 * np.pi * np.e) + np.log(spread), abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "picks"), [({}, False), ({"target_candidates": 2}, True), ({"ent_coef": 0.0}, True)], ids=str
)
def test_from_scratch_explores_with_the_policy_that_the_target_values(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], picks: bool
) -> None:
    model = tiny_model(learning_starts=0, **arguments)
    model.policy.critic_is_ripe.fill_(True)
    predict, ripe = model.policy.predict, []

    def noted(*args: Any, **kwargs: Any) -> Any:
        ripe.append(bool(model.policy.critic_is_ripe))
        return predict(*args, **kwargs)

    monkeypatch.setattr(model.policy, "predict", noted)
    model.learn(5)
    assert ripe == [picks] * 5 and model.policy.critic_is_ripe


@pytest.mark.parametrize("n_critics", [1, 2, 5])
def test_trains_with_any_number_of_critics(n_critics: int) -> None:
    model = tiny_model(target_candidates=3, policy_kwargs={"n_critics": n_critics}).learn(60)
    assert model.policy.critic_is_ripe
    assert np.isfinite(list(metrics(model).values())).all()


@pytest.mark.parametrize("kind", ["image", "dict"])
def test_other_observations(kind: str) -> None:
    model = tiny_model(Mirror(kind), target_candidates=3)
    model.policy.critic_is_ripe.fill_(True)
    model.learn(30)
    assert np.isfinite(list(metrics(model).values())).all()


def test_hindsight_goals() -> None:
    arguments = with_demonstrations(goal_demonstrations(), online_buffer_class="stable_baselines3.HerReplayBuffer")
    model = tiny_model(goal_env(), target_candidates=3, **arguments)
    model.policy.critic_is_ripe.fill_(True)
    model.learn(60)
    assert np.isfinite(list(metrics(model).values())).all()


@pytest.mark.parametrize(
    ("saved", "loaded_with", "m"), [("auto", {}, 4), (2, {}, 2), (1, {"target_candidates": "auto"}, 4)]
)
def test_a_saved_clone_keeps_its_candidates(
    tmp_path: Any, saved: int | str, loaded_with: dict[str, Any], m: int
) -> None:
    model = tiny_model(target_candidates=saved, policy_kwargs={"n_candidates": 4})
    model.is_pretrained = True
    model.save(tmp_path / "model")
    assert SWFP.load(tmp_path / "model", **loaded_with)._candidates_in_target == m


def test_saved_and_loaded(tmp_path: Any) -> None:
    tiny_model(target_candidates=3, jko_step_size="auto_lin_0.02").learn(60).save(tmp_path / "model")
    loaded = SWFP.load(tmp_path / "model")
    assert loaded.target_candidates == 3
    assert loaded.jko.step_size.decays and loaded.jko.step_size.progress_remaining < 0.1


@pytest.mark.parametrize("w2", ["paired", "exact"])
def test_what_few_states_stand_for_a_batch(w2: str) -> None:
    """They are spread over it: its first rows are demonstrations."""
    model = tiny_model(Mirror(), w2=w2)
    features = th.arange(256.0).repeat(2, 1).T
    states = model._plan_rows(features)[:, 0].unique()
    assert len(states) == 256 if w2 == "paired" else states.tolist() == list(range(0, 256, 16))
    seen: list[float] = []

    def integrate(rows: th.Tensor, noise: th.Tensor) -> Sweep:
        seen.append(float(rows[0, 0]))
        return Sweep([noise], None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.jko.cascade, "integrate", integrate)
        patch.setattr(model.jko.reference, "integrate", integrate)
        model.jko._exact_movement(features, features)
    assert sorted(set(seen)) == [0.0, 64.0, 128.0, 192.0]
