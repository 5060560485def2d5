"""Cloning, then learning on: scaling, who acts before ``learning_starts``, and when the blocks may move."""

from __future__ import annotations

import pathlib
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import Mirror, metrics, mirror_demonstrations, record, same, tiny_model, weights, with_demonstrations

from sb3_swfp import SWFP, DemonstrationReplayBuffer
from sb3_swfp.baselines import SWFPKL, CloneSAC
from sb3_swfp.ripeness import CriticRipeness


def clone(env: Any = None, demonstrations: Any = None, gradient_steps: int = 20, **kwargs: Any) -> SWFP:
    """A clone, by default a hasty one."""
    arguments = with_demonstrations(mirror_demonstrations(4) if demonstrations is None else demonstrations)
    model = tiny_model(Mirror() if env is None else env, **(arguments | kwargs))
    model.pretrain(gradient_steps=gradient_steps, batch_size=64)
    return model


@pytest.fixture
def no_random_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing from an action space fails. (The environment of these tests draws from none.)"""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a uniformly random action was taken")

    monkeypatch.setattr(spaces.Box, "sample", refuse)


@pytest.mark.parametrize(("normalised", "n_blocks"), [(True, 1), (True, 5), (False, 5)])
def test_a_clone_predicts_the_demonstrated_actions(normalised: bool, n_blocks: int) -> None:
    """Through normalised observations far from zero, and non-symmetric bounds of unequal width."""
    demonstrations = mirror_demonstrations(40)
    env: Any = DummyVecEnv([Mirror])
    if normalised:
        env = VecNormalize(env)
    policy_kwargs = {"n_blocks": n_blocks, "block_net_arch": [64, 64]}
    model = tiny_model(env, policy_kwargs=policy_kwargs)
    result = model.pretrain(demonstrations, gradient_steps=1000, batch_size=64, learning_rate=3e-3)
    assert result.validation_loss < 1.0 and 0 < result.best_step <= result.gradient_steps <= 1000
    observations: Any = demonstrations.observations()
    if normalised:
        observations = env.normalize_obs(observations)
    actions = model.predict(observations, deterministic=True)[0]
    span = model.action_space.high - model.action_space.low
    errors = np.abs(actions - demonstrations.actions()) / span
    # Actions are spread over 80 % of the span: acting at random errs by 0.3, by the middle 0.2
    assert (errors.mean(axis=0) < 0.05).all()


def test_only_the_policy_acts_before_learning_starts(no_random_actions: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = clone(learning_starts=30, demonstrations=mirror_demonstrations(4))
    predicted: list[np.ndarray] = []
    predict = model.predict
    monkeypatch.setattr(
        model, "predict", lambda *args, **kwargs: predicted.append(predict(*args, **kwargs)[0]) or (predicted[-1], None)
    )
    model.learn(25)
    buffer: Any = model.replay_buffer
    assert len(predicted) == 25 and model._n_updates == 0
    np.testing.assert_allclose(buffer.actions[:25, 0], model.policy.scale_action(np.concatenate(predicted)), atol=1e-6)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_nor_after_loading_nor_when_learning_again(
    no_random_actions: None, tmp_path: pathlib.Path, n_envs: int
) -> None:
    model = clone(DummyVecEnv([Mirror] * n_envs), learning_starts=50)
    model.learn(20)
    model.learn(20)
    model.save(tmp_path / "clone")
    loaded = SWFP.load(tmp_path / "clone", env=DummyVecEnv([Mirror] * n_envs))
    assert loaded.is_pretrained
    loaded.learn(20)
    assert loaded.num_timesteps == 20


def test_a_new_policy_does_act_at_random(no_random_actions: None) -> None:
    with pytest.raises(AssertionError, match="uniformly random"):
        tiny_model(Mirror()).learn(5)


def test_the_actor_waits_for_the_critic() -> None:
    model = clone(learning_starts=0, critic_warmup=10, policy_delay=1)
    actors = (model.actor, model.actor_reference, model.actor_average)
    before = [weights(actor) for actor in actors]
    critic = weights(model.critic)
    model.learn(9)
    assert not same(weights(model.critic), critic) and not model.policy.critic_is_ripe
    model.policy.critic_is_ripe.fill_(True)
    model.learn(10, reset_num_timesteps=False)  # competition first
    assert all(same(weights(actor), old) for actor, old in zip(actors, before, strict=True))
    assert "actor_loss" not in metrics(model)
    model.learn(3, reset_num_timesteps=False)
    assert not same(weights(model.actor), before[0]) and not same(weights(model.actor_average), before[2])


def test_the_actor_waits_while_values_drift() -> None:
    model = clone(learning_starts=0, critic_warmup=0, policy_delay=1)
    before = weights(model.actor)
    model.policy.critic_is_ripe.fill_(True)
    model.ripeness = CriticRipeness(updates=10_000, fast=1.0, slow=-1.0, magnitude=1.0)
    model.learn(10)
    assert same(weights(model.actor), before) and metrics(model)["critic_drift"] > 0.3
    model.ripeness = CriticRipeness(updates=10_000, fast=1.0, slow=0.99, magnitude=1.0)
    model.learn(3, reset_num_timesteps=False)
    assert not same(weights(model.actor), before)


@pytest.mark.parametrize(("better", "worth"), [(False, 1.0), (True, 1.0), (False, 0.1)])
def test_the_actor_waits_until_the_critics_picks_pay(better: bool, worth: float) -> None:
    """Or until it is known that the clone is worth little, beside the demonstrations."""
    model = clone(learning_starts=0, critic_warmup=5, policy_delay=1)
    before = weights(model.actor)
    model.learn(9)
    returns = [100.0 * worth + i / 10.0 for i in range(20)]
    model.ripeness.demonstrated_return = model.ripeness.lowest_return + 100.0
    for episode_return in returns:
        model.ripeness.add_episode(episode_return, picked=False)
        model.ripeness.add_episode(episode_return + (50.0 if better else -50.0 * worth), picked=True)
    model.learn(11, reset_num_timesteps=False)  # to the end of the first episode, and beyond
    ripe = better or worth < 1.0
    assert bool(model.policy.critic_is_ripe) == ripe
    assert same(weights(model.actor), before) != ripe


@pytest.mark.parametrize("monitored", [False, True])
def test_episodes_are_judged_also_in_environments_without_a_monitor(monitored: bool) -> None:
    """A vectorised environment is the user's own, and SB3 puts no Monitor around it."""
    model = clone(DummyVecEnv([(lambda: Monitor(Mirror())) if monitored else Mirror] * 2), critic_warmup=5)
    model.learn(200)
    judged = len(model.ripeness.with_picks) + len(model.ripeness.without_picks)
    assert judged >= 10 or model.policy.critic_is_ripe


def test_a_clone_on_trial_goes_on_with_other_environments(tmp_path: pathlib.Path) -> None:
    model = clone(DummyVecEnv([lambda: Monitor(Mirror())]), critic_warmup=5)
    model.learn(60)
    model._trial.picking = np.ones(1, dtype=bool)
    model.save(tmp_path / "clone")
    loaded = SWFP.load(tmp_path / "clone", env=DummyVecEnv([lambda: Monitor(Mirror())] * 3))
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps == 120 and len(loaded._trial.picking) == 3


def test_the_trial_counts_no_episode_across_a_reset() -> None:
    model = clone(Mirror(length=10), learning_starts=0, critic_warmup=1_000)
    model.learn(4)
    assert np.any(model._trial._returns != 0.0)
    model._setup_learn(4, None)
    assert np.all(model._trial._returns == 0.0)


def test_without_a_clone_there_is_nothing_to_protect() -> None:
    model = tiny_model(Mirror(), critic_warmup=1_000)
    before = weights(model.actor)
    model.learn(30)
    assert not same(weights(model.actor), before)


def test_a_saved_clone_acts_the_same(tmp_path: pathlib.Path) -> None:
    env = VecNormalize(DummyVecEnv([Mirror]))
    model = clone(env)
    model.save(tmp_path / "clone")
    loaded = SWFP.load(tmp_path / "clone", env=env)
    observations = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    actions = [each.predict(observations, deterministic=True)[0] for each in (model, loaded)]
    np.testing.assert_array_equal(*actions)
    assert same(weights(loaded.policy), weights(model.policy))
    assert loaded._current_ent_coef() == pytest.approx(model._current_ent_coef())
    assert loaded.jko.step_size.target == model.jko.step_size.target


def test_what_pretraining_sets() -> None:
    model = tiny_model(Mirror(), jko_step_size="auto")
    demonstrations = mirror_demonstrations(4)
    critic, target, from_scratch = (
        weights(model.critic.q_networks),
        model.jko.step_size.target,
        model._current_ent_coef(),
    )
    model.pretrain(demonstrations, gradient_steps=20)
    assert same(weights(model.critic.q_networks), critic)
    assert same(weights(model.actor), weights(model.actor_average))
    assert same(weights(model.actor), weights(model.actor_reference))
    step_size = model.jko.step_size
    assert step_size.decays and step_size.target == pytest.approx(0.02 * model.clone_spread) != target
    assert model._current_ent_coef() < from_scratch
    assert float(model.critic.scale) == float(model.critic_target.scale) != 1.0
    # A number is the user's word
    model = tiny_model(Mirror(), jko_step_size=0.07, ent_coef=0.2)
    model.pretrain(demonstrations, gradient_steps=20)
    assert (model.jko.step_size.value, model._current_ent_coef()) == (0.07, pytest.approx(0.2))


@pytest.mark.parametrize(
    ("what", "pretrained", "share"),
    [
        ({}, False, 1.0),  # from scratch, at its "auto"
        ({}, True, 0.5),
        ({"block_training": "sequential"}, True, 0.5),
        ({"jko_step_size": "auto_0.03"}, True, 1.0),  # held: the rate as well
        ({"jko_step_size": 0.1}, True, 1.0),
        ({"jko_step_size": "auto_lin_0.1"}, False, 0.5),
    ],
)
def test_the_blocks_rate_falls_with_the_movement_that_is_aimed_at(
    what: dict[str, Any], pretrained: bool, share: float
) -> None:
    model = tiny_model(Mirror(), learning_rate=1e-3, **({"jko_step_size": "auto"} | what))
    if pretrained:
        model.pretrain(mirror_demonstrations(4), gradient_steps=2)
    model.learn(20)  # something to train on

    def rates(optimizers: list[th.optim.Optimizer]) -> set[float]:
        return {group["lr"] for optimizer in optimizers for group in optimizer.param_groups}

    at_the_end = 0.1 if share < 1.0 else 1.0
    for progress, now in ((1.0, 1.0), (0.5, share), (-0.1, at_the_end)):  # the last roll-out overshoots
        model._current_progress_remaining = progress
        model.train(1, 16)
        rate = metrics(model)["actor_learning_rate"]
        assert rates(model._actor_optimizers()) == {rate} and rate == pytest.approx(1e-3 * now)
        assert model.ent_coef_optimizer is not None
        assert rates([model.critic.optimizer, model.ent_coef_optimizer]) == {1e-3}
        # It is the share of the target that the step size aims at: so much movement leaves eta as it is
        step_size, eta = model.jko.step_size, model.jko.step_size.value
        step_size.update(now * (step_size.target or 1.0))
        assert step_size.value == pytest.approx(eta)


def test_the_falling_rate_goes_on_where_a_file_is_loaded(tmp_path: pathlib.Path) -> None:
    model = clone(jko_step_size="auto", learning_rate=1e-3, learning_starts=0)
    model.learn(20)
    assert metrics(model)["actor_learning_rate"] == pytest.approx(1e-4)
    model.save(tmp_path / "model")

    def first_rate(**what: Any) -> float:
        """After the first of 20 more steps: SB3 then counts 21 of 40."""
        loaded = SWFP.load(tmp_path / "model", env=Mirror(), **what)
        rates: list[float] = []
        loaded.learn(
            20,
            lambda local, _: bool(rates.append(local["self"]._actor_learning_rate()) or True),
            reset_num_timesteps=False,
        )
        return rates[1]

    assert first_rate() == pytest.approx(1e-3 * 19 / 40)
    assert first_rate(jko_step_size="auto_0.02") == pytest.approx(1e-3)


def test_a_jko_epoch_begins_anew_with_another_clone() -> None:
    model = clone(jko_epoch=4)
    batch = model.replay_buffer.sample(16)

    def ends() -> list[bool]:
        return ["w2_paired" in model._train_actor(batch, 0.0) for _ in range(4)]

    assert ends() == [False, False, False, True]
    model._train_actor(batch, 0.0)  # in the middle of an epoch, against a reference that goes
    model.pretrain(gradient_steps=2)
    assert ends() == [False, False, False, True]


def test_a_clone_is_confined_and_an_untrained_policy_is_not(tmp_path: pathlib.Path) -> None:
    model = tiny_model(Mirror(), **with_demonstrations(mirror_demonstrations(4)))
    assert not model.jko.confined
    model.pretrain(gradient_steps=2)
    assert model.jko.confined
    free = tiny_model(Mirror(), confined=False, **with_demonstrations(mirror_demonstrations(4)))
    free.pretrain(gradient_steps=2)
    assert not free.jko.confined
    model.confinement = 0.0  # type: ignore[attr-defined]  # as in files from before
    model.save(tmp_path / "clone")
    assert SWFP.load(tmp_path / "clone", env=Mirror()).jko.confined
    assert not SWFP.load(tmp_path / "clone", env=Mirror(), confined=False).jko.confined
    scratch = tiny_model(Mirror(), confined=True)
    assert scratch.jko.confined
    before = [parameter.clone() for parameter in scratch.actor.cascade.parameters()]
    scratch.learn(60)
    assert any(not th.equal(old, new) for old, new in zip(before, scratch.actor.cascade.parameters(), strict=True))


@pytest.mark.parametrize("confined", [False, True])
def test_sequential_training_hands_each_block_what_the_new_blocks_before_it_make_of_the_noise(
    monkeypatch: pytest.MonkeyPatch, confined: bool
) -> None:
    model = clone(block_training="sequential", confined=confined, critic_warmup=0)
    loss, worst = model.jko.sequential_loss, []

    def spy(n: int, features: th.Tensor, x_0: th.Tensor, x: th.Tensor, *args: Any) -> th.Tensor:
        expected = x_0
        for m in range(n):
            expected = model.actor.cascade.apply_block(m, features, expected)
        worst.append((x - expected).abs().max().item())
        return loss(n, features, x_0, x, *args)

    monkeypatch.setattr(model.jko, "sequential_loss", spy)
    before = model.actor.cascade.integrate(th.zeros(1, 2), th.zeros(1, model.action_dim)).particles[-1]
    for _ in range(3):
        model._train_actor(model.replay_buffer.sample(16), 0.0)
    assert len(worst) == 3 * model.actor.cascade.n_blocks and max(worst) == 0.0
    assert not th.equal(
        before, model.actor.cascade.integrate(th.zeros(1, 2), th.zeros(1, model.action_dim)).particles[-1]
    )


@pytest.mark.parametrize("cls", [SWFP, SWFPKL])
def test_episodes_before_the_trial_count_as_without_picks(cls: type[Any]) -> None:
    arguments = with_demonstrations(mirror_demonstrations(4))
    model = cls("FlowPolicy", Mirror(length=10), learning_starts=0, critic_warmup=1_000, seed=0, **arguments)
    model.pretrain(gradient_steps=20)
    model.learn(45)
    assert len(model.ripeness.without_picks) == model.ripeness.clone_episodes == 4 and not model.ripeness.with_picks
    counted = np.minimum(model.ripeness.without_picks, model.ripeness.demonstrated_return)
    assert model.ripeness.clone_return == pytest.approx(np.mean(counted))
    model.pretrain(gradient_steps=2)  # another clone
    assert model.ripeness.clone_episodes == 0 and not model.ripeness.without_picks


def test_no_verdict_while_the_trial_is_suspended() -> None:
    model = clone(Mirror(length=5), learning_starts=1_000, critic_warmup=0)
    for _ in range(5):
        model.ripeness.add_episode(-1e6, picked=True)
        model.ripeness.add_episode(0.0, picked=False)
    model.ripeness.fast, model.ripeness.magnitude = 2.0, 1.0  # a drift of 2
    model.ripeness.without_picks.extend([-1e7] * 20)  # by these the picks would pay
    model.learn(20)
    assert not model.policy.critic_is_ripe and len(model.ripeness.with_picks) == 5


def test_one_candidate_is_ripe_once_an_episode_has_shown_what_the_clone_is_worth() -> None:
    model = clone(Mirror(length=10), learning_starts=0, critic_warmup=0, policy_kwargs={"n_candidates": 1})
    model.learn(9)
    assert not model.policy.critic_is_ripe
    model.learn(10, reset_num_timesteps=False)
    assert model.policy.critic_is_ripe and len(model.ripeness.without_picks) == 1


def test_exploration_of_a_clone_is_as_soft_as_its_temperature() -> None:
    """Candidates compete before the blocks move: the temperature must be alpha's from the first competition on."""
    model = clone(learning_starts=0)
    assert float(model.policy.temperature) == pytest.approx(model._current_ent_coef(), rel=1e-3)
    model.learn(15)
    assert float(model.policy.temperature) == pytest.approx(model._current_ent_coef(), rel=1e-3)


def test_critic_pretraining() -> None:
    model = tiny_model(Mirror(), n_steps=3)
    before, critic = weights(model.actor), weights(model.critic.q_networks)
    model.pretrain(mirror_demonstrations(4), gradient_steps=20, critic_gradient_steps=20)
    assert not same(weights(model.critic.q_networks), critic) and not same(weights(model.actor), before)
    assert model.ripeness.updates == 20 and model._n_updates == 0


def test_early_stopping_keeps_the_best_weights() -> None:
    """Random labels: whatever is learned of the training episodes is worse than nothing on the held-out one."""
    rng = np.random.default_rng(0)
    env = Mirror()
    noise = record(env, 4, lambda _: rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32))  # type: ignore[attr-defined]
    model = tiny_model(Mirror(), policy_kwargs={"block_net_arch": [64, 64]})
    result = model.pretrain(noise, gradient_steps=5000, batch_size=32, learning_rate=1e-2, patience=200)
    assert result.gradient_steps < 5000 and result.gradient_steps - result.best_step >= 200


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_nothing_held_out(fraction: float) -> None:
    demonstrations = mirror_demonstrations(3 if fraction == 0.0 else 1)
    result = tiny_model(Mirror()).pretrain(
        demonstrations, gradient_steps=150, validation_fraction=fraction, patience=10
    )
    assert result.gradient_steps == result.best_step == 150


def test_demonstrations_given_to_pretrain_stay_in_play(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "demonstrations.npz"
    mirror_demonstrations(5).save(path)
    model = tiny_model(Mirror(), **with_demonstrations(None))
    model.pretrain(str(path), gradient_steps=5)
    buffer: Any = model.replay_buffer
    assert buffer.demonstrations.n_transitions == 50
    model.pretrain(mirror_demonstrations(2), gradient_steps=5)  # the buffer keeps what it has
    assert buffer.demonstrations.n_transitions == 50
    model.learn(40)
    assert metrics(model)["demonstration_share"] == 1 / 8  # a tenth of 8, rounded


def test_a_clone_needs_fewer_demonstrations(tmp_path: pathlib.Path) -> None:
    default = signature(DemonstrationReplayBuffer).parameters["demonstration_share"].default
    model = tiny_model(Mirror(), **with_demonstrations(mirror_demonstrations(3)))
    buffer: Any = model.replay_buffer
    assert buffer.demonstration_share == default == 0.5  # no clone yet
    model.pretrain(gradient_steps=5)
    assert buffer.demonstration_share == 0.1
    model.save(tmp_path / "clone")
    loaded: Any = SWFP.load(tmp_path / "clone", env=Mirror())
    assert loaded.replay_buffer.demonstration_share == 0.1
    new = tiny_model(Mirror(), **with_demonstrations(mirror_demonstrations(3))).learn(20)
    new.save_replay_buffer(tmp_path / "buffer")
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")  # of before there was a clone
    assert loaded.replay_buffer.pos == 20 and loaded.replay_buffer.demonstration_share == 0.1
    arguments = with_demonstrations(mirror_demonstrations(3), demonstration_share=0.5)
    loaded = SWFP.load(tmp_path / "clone", env=Mirror(), replay_buffer_kwargs=arguments["replay_buffer_kwargs"])
    assert loaded.replay_buffer.demonstration_share == 0.5
    buffer.demonstration_share = 0.3
    model.pretrain(gradient_steps=5)
    assert buffer.demonstration_share == 0.3  # set by hand
    # Set in replay_buffer_kwargs, be it to the buffer's default
    model = tiny_model(Mirror(), **arguments)
    model.pretrain(gradient_steps=5)
    buffer = model.replay_buffer
    assert buffer.demonstration_share == 0.5
    variant = SWFPKL("FlowPolicy", Mirror(), seed=0, **with_demonstrations(mirror_demonstrations(3)))
    variant.pretrain(gradient_steps=5)
    assert variant.replay_buffer.demonstration_share == 0.1  # type: ignore[union-attr]
    # The baselines keep what they were published with
    gaussian = CloneSAC("MlpPolicy", Mirror(), **with_demonstrations(mirror_demonstrations(3)))
    gaussian.pretrain(gradient_steps=5)
    assert gaussian.replay_buffer.demonstration_share == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize("share", [0, 1.0])
def test_extreme_shares(share: float) -> None:
    model = tiny_model(Mirror(), **with_demonstrations(mirror_demonstrations(3), demonstration_share=share))
    model.pretrain(gradient_steps=5)
    model.learn(40)
    assert metrics(model)["demonstration_share"] == share


def test_settings_of_a_yaml_file(tmp_path: pathlib.Path) -> None:
    mirror_demonstrations(5).save(tmp_path / "demonstrations.npz")
    arguments = with_demonstrations(str(tmp_path / "demonstrations.npz"), n_demonstrations=2, demonstration_share=0.75)
    model = tiny_model(Mirror(), n_steps=4, gamma=0.95, **arguments)
    buffer: Any = model.replay_buffer
    assert (len(buffer.demonstrations), buffer.n_steps, buffer.gamma) == (2, 4, 0.95)
    assert "env" not in model.replay_buffer_kwargs and "n_steps" not in model.replay_buffer_kwargs
    model.learn(40)
    assert metrics(model)["demonstration_share"] == 0.75
