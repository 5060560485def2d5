"""Saving and loading as SB3 checks them, what SWFP adds to a saved model, and files that outlive an interruption."""

from __future__ import annotations

import io
import pathlib
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny import Mirror, mirror_demonstrations, same, tiny_model, weights, with_demonstrations

from sb3_swfp import SWFP, DemonstrationReplayBuffer, FlowActorCriticPolicy
from sb3_swfp.baselines import CloneSAC

MODES = pytest.mark.parametrize(
    "arguments",
    [{}, {"block_training": "sequential", "ent_coef": 0.05}, {"w2": "sinkhorn", "ent_coef": "auto_0.1"}],
    ids=["parallel", "sequential", "sinkhorn"],
)


def observations(model: SWFP) -> np.ndarray:
    model.observation_space.seed(0)
    return np.array([model.observation_space.sample() for _ in range(7)])


def adam_steps(model: SWFP) -> dict[str, list[float]]:
    """How many updates each optimiser has done, parameter by parameter."""
    optimisers = {"actor": model.actor.optimizer, "critic": model.critic.optimizer}
    if model.ent_coef_optimizer is not None:
        optimisers["ent_coef"] = model.ent_coef_optimizer
    if model.block_training == "sequential":
        optimisers["blocks"] = model.block_optimizer
    assert {id(one) for one in optimisers.values()} == {id(one) for one in model._optimizers()}
    return {
        name: [float(state["step"]) for state in optimiser.state_dict()["state"].values()]
        for name, optimiser in optimisers.items()
    }


@MODES
def test_round_trip(tmp_path: pathlib.Path, arguments: dict[str, Any]) -> None:
    model = tiny_model(Mirror(), **arguments).learn(60)
    model.policy.critic_is_ripe.fill_(True)
    model.save(tmp_path / "model")
    loaded = SWFP.load(tmp_path / "model.zip", env=Mirror(), device="cpu")
    assert same(weights(loaded.policy), weights(model.policy))
    assert adam_steps(loaded) == adam_steps(model) and len(adam_steps(model)["critic"]) > 0
    assert loaded._n_updates == model._n_updates
    np.testing.assert_equal(vars(loaded.ripeness), vars(model.ripeness))  # NaN, unknown, is equal to itself
    assert loaded._current_ent_coef() == pytest.approx(model._current_ent_coef())
    assert loaded.jko.step_size.value == model.jko.step_size.value
    for deterministic in (True, False):
        actions = []
        for each in (model, loaded):
            th.manual_seed(0)
            actions.append(each.predict(observations(model), deterministic=deterministic)[0])
        np.testing.assert_array_equal(*actions)
    loaded.learn(30, reset_num_timesteps=False)
    assert not same(weights(loaded.actor), weights(model.actor))


@MODES
def test_learning_goes_on_where_it_stopped(tmp_path: pathlib.Path, arguments: dict[str, Any]) -> None:
    """Time steps, schedules, optimisers and, with the buffer saved, data."""
    model = tiny_model(Mirror(), learning_rate=lambda remaining: 1e-3 * remaining, **arguments).learn(60)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = SWFP.load(tmp_path / "model.zip", env=Mirror(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    before = adam_steps(loaded)
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == 100 and loaded._total_timesteps == 100 and loaded._n_updates == 80
    assert loaded.replay_buffer is not None and loaded.replay_buffer.pos == 100
    # The critics were updated 40 times more, and no time went to random actions before learning_starts
    assert adam_steps(loaded)["critic"] == [count + 40 for count in before["critic"]]
    assert loaded._current_progress_remaining == pytest.approx(0.0)
    if arguments.get("block_training") == "sequential":
        assert adam_steps(loaded)["blocks"] == [count + 20 for count in before["blocks"]]


def test_parameters(tmp_path: pathlib.Path) -> None:
    model, other = tiny_model(), tiny_model(seed=1)
    parameters = model.get_parameters()
    assert set(parameters) == {"policy", "actor.optimizer", "critic.optimizer", "ent_coef_optimizer"}
    assert not same(weights(other.policy), weights(model.policy))
    other.set_parameters(parameters)
    assert same(weights(other.policy), weights(model.policy))
    model.save(tmp_path / "model")
    other = tiny_model(seed=1)
    other.set_parameters(str(tmp_path / "model"))
    assert same(weights(other.policy), weights(model.policy))
    # A part of them, which must be asked for
    with pytest.raises(ValueError):
        other.set_parameters({"policy": parameters["policy"]})
    other.set_parameters({"policy": parameters["policy"]}, exact_match=False)
    with pytest.raises(ValueError):
        other.set_parameters({"no such part": parameters["policy"]})
    with pytest.raises(ValueError):
        other.set_parameters({"policy": parameters["policy"], "no such part": {}}, exact_match=False)
    wrong = parameters | {"policy": {"no such weight": th.zeros(1)}}
    with pytest.raises(RuntimeError):
        other.set_parameters(wrong)


def test_sequential_blocks_still_share_their_weights_after_loading(tmp_path: pathlib.Path) -> None:
    """The blocks' optimiser holds views of the stacked weights: loading must write into these, not beside them."""
    model = tiny_model(block_training="sequential").learn(40)
    model.save(tmp_path / "model")
    loaded = SWFP.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    loaded.set_parameters(model.get_parameters())
    views = loaded.block_optimizer.param_groups[1]["params"]
    for view, stacked in zip(views, loaded.actor.cascade.parameters(), strict=True):
        assert view.data_ptr() == loaded.actor.cascade.block_slice(stacked.data, 1).data_ptr()


def test_include_exclude_and_custom_objects(tmp_path: pathlib.Path) -> None:
    model = tiny_model(verbose=0)
    model.save(tmp_path / "model", exclude=["gamma"], include=["_custom_logger"])
    data, *_ = load_from_zip_file(tmp_path / "model")
    assert data is not None and "gamma" not in data and "_custom_logger" in data
    loaded = SWFP.load(tmp_path / "model", custom_objects={"learning_rate": 2e-6, "unused": 1}, verbose=2)
    assert loaded.learning_rate == 2e-6 and loaded.verbose == 2 and not hasattr(loaded, "unused")
    with pytest.raises(ValueError, match="policy kwargs"):
        SWFP.load(tmp_path / "model", policy_kwargs={"n_blocks": 7})


def test_fixed_and_learned_entropy_coefficients(tmp_path: pathlib.Path) -> None:
    for ent_coef in ("auto", 0.03):
        model = tiny_model(ent_coef=ent_coef).learn(60)
        value = model._current_ent_coef()
        model.save(tmp_path / "model")
        loaded = SWFP.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
        assert loaded._current_ent_coef() == value and (loaded.ent_coef_optimizer is None) == (ent_coef == 0.03)
        loaded.learn(30, reset_num_timesteps=False)
        assert (loaded._current_ent_coef() == value) == (ent_coef == 0.03)


@pytest.mark.parametrize(("saved", "wanted"), [("auto", 0.0), (0.03, "auto_0.5"), (0.03, 0.1)])
@pytest.mark.parametrize("cls", [SWFP, CloneSAC])
def test_loaded_with_another_entropy_coefficient(cls: Any, saved: Any, wanted: Any, tmp_path: pathlib.Path) -> None:
    """A clone is saved with the defaults, and fine-tuned without entropy."""
    env, policy = gym.make("Pendulum-v1"), next(iter(cls.policy_aliases))
    small = dict(buffer_size=100, learning_starts=10, batch_size=8, policy_kwargs={"net_arch": [8]})
    cls(policy, env, ent_coef=saved, **small).learn(40).save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=env, ent_coef=wanted)
    assert loaded._current_ent_coef() == pytest.approx(0.5 if wanted == "auto_0.5" else wanted)
    if cls is SWFP and wanted != "auto_0.5":
        assert loaded.policy.temperature.item() == pytest.approx(max(wanted, 1e-8))
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded._current_ent_coef() == wanted or wanted == "auto_0.5"
    loaded.save(tmp_path / "again")
    again = cls.load(tmp_path / "again", env=env)
    assert again._current_ent_coef() == loaded._current_ent_coef()


def test_saved_attributes_need_no_particular_device(tmp_path: pathlib.Path) -> None:
    """Tensors among the pickled attributes of a model trained on a GPU could not be read where there is none."""
    tiny_model().learn(40).save(tmp_path / "model")
    data, *_ = load_from_zip_file(tmp_path / "model")
    assert data is not None
    held: list[str] = []
    for name, value in data.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        held += [f"{name} {key}" for key, part in parts if isinstance(part, th.Tensor)]
    assert not held


@pytest.mark.parametrize("kind", ["str", "path", "suffix", "dots", "buffer"])
def test_kinds_of_path(tmp_path: pathlib.Path, kind: str) -> None:
    model = tiny_model()
    target: Any = {
        "str": str(tmp_path / "model"),
        "path": tmp_path / "deep" / "model",
        "suffix": tmp_path / "model.zip",
        "dots": tmp_path / "model.v1",
        "buffer": io.BytesIO(),
    }[kind]
    model.save(target)
    if kind == "buffer":
        target.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(weights(SWFP.load(target).policy), weights(model.policy))
    if kind != "buffer":
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(written) == 1 and written[0].suffix == (".v1" if kind == "dots" else ".zip")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left on the device")])
@pytest.mark.parametrize("what", ["model", "replay_buffer"])
def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, what: str, error: Any
) -> None:
    model = tiny_model().learn(30)
    path = tmp_path / ("model.zip" if what == "model" else "buffer.pkl")
    save, load = (model.save, SWFP.load) if what == "model" else (model.save_replay_buffer, model.load_replay_buffer)
    save(path)
    content = path.read_bytes()

    class Interrupted:
        """Pickles halfway."""

        def __reduce__(self) -> Any:
            raise error

    if what == "model":
        th_save = th.save

        def fail(*args: Any, **kwargs: Any) -> None:
            if kwargs:  # not the archive's parts, but tensors inside a pickle
                return th_save(*args, **kwargs)
            raise error

        monkeypatch.setattr(th, "save", fail)
    else:
        assert model.replay_buffer is not None
        model.replay_buffer.last = Interrupted()  # type: ignore[attr-defined]
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        save(path)
    assert path.read_bytes() == content and [file.name for file in tmp_path.iterdir()] == [path.name]
    load(path)


def test_set_env(tmp_path: pathlib.Path) -> None:
    first, second = DummyVecEnv([Mirror]), DummyVecEnv([Mirror])
    model = tiny_model(first).learn(30)
    model.set_env(second)
    assert model._last_obs is None
    model.learn(30, reset_num_timesteps=False)
    assert model.get_env() is second and model.num_timesteps == 60
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(DummyVecEnv([Mirror] * 2))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(DummyVecEnv([lambda: Mirror("image")]))
    model.set_env(first, force_reset=False)
    assert model._last_obs is not None
    model.learn(10, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    # Loaded without an environment, it acts; learning needs one
    loaded = SWFP.load(tmp_path / "model", device="cpu")
    assert loaded.predict(observations(loaded))[0].shape == (7, 2)
    with pytest.raises(AssertionError, match="environment"):
        loaded.learn(10)
    loaded.set_env(Mirror())
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.num_timesteps == 100


def test_another_environment_when_loading(tmp_path: pathlib.Path) -> None:
    tiny_model(Mirror()).save(tmp_path / "model")
    loaded = SWFP.load(tmp_path / "model", env=DummyVecEnv([Mirror] * 2)).learn(40)
    assert loaded.n_envs == 2
    with pytest.raises(ValueError, match="spaces do not match"):
        SWFP.load(tmp_path / "model", env=gym.make("Pendulum-v1"))


@pytest.mark.parametrize("demonstrated", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_replay_buffer(tmp_path: pathlib.Path, demonstrated: bool, n_steps: int) -> None:
    arguments = with_demonstrations(mirror_demonstrations(2)) if demonstrated else {}
    model = tiny_model(Mirror(), n_steps=n_steps, **arguments).learn(45)
    old = model.replay_buffer
    assert old is not None
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.replay_buffer = None
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    new: Any = model.replay_buffer
    assert new.device.type == model.device.type and new.pos == old.pos == 45
    for name in ("observations", "next_observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(new, name), getattr(old, name))
    np.testing.assert_array_equal(new.dones[:44], old.dones[:44])
    if demonstrated:
        assert new.demonstrations.n_transitions == 20 and new.last_demonstration_share == 0.5
    model.learn(30, reset_num_timesteps=False)
    assert new.pos == 75


@pytest.mark.parametrize("missing", ["file", "package"])
def test_a_model_acts_where_its_demonstrations_are_not(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    path = tmp_path / "demonstrations.npz"
    demonstrations = mirror_demonstrations(3)
    demonstrations.save(path)
    source = str(path)
    model = tiny_model(Mirror(), **with_demonstrations(source, n_demonstrations=2))
    model.pretrain(gradient_steps=20)
    if missing == "package":  # they came from Minari, and this machine has none
        model.replay_buffer_kwargs["demonstrations"] = "some/data-v0"
        monkeypatch.setitem(sys.modules, "minari", None)
    model.save(tmp_path / "model")
    path.unlink()
    with pytest.warns(UserWarning, match="demonstrations .*are not here"):
        loaded = SWFP.load(tmp_path / "model", env=Mirror())
    seen = observations(model)
    actions = [each.predict(seen, deterministic=True)[0] for each in (model, loaded)]
    np.testing.assert_array_equal(*actions)
    assert isinstance(loaded.replay_buffer, DemonstrationReplayBuffer)
    with pytest.raises(FileNotFoundError, match="to go on without any"):
        loaded.learn(5)
    loaded.replay_buffer.set_demonstrations(demonstrations)
    loaded.learn(30)
    assert loaded.replay_buffer.last_demonstration_share == 1 / 8  # a tenth of 8, rounded
    # A new model, on the other hand, must not start without what it was asked to use
    if missing == "file":
        with pytest.raises(FileNotFoundError, match="demonstrations.npz"):
            tiny_model(Mirror(), **with_demonstrations(source))


@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
def test_policy_alone(tmp_path: pathlib.Path, kind: str) -> None:
    arguments: dict[str, Any] = {
        "n_blocks": 3,
        "euler_steps": 2,
        "n_candidates": 4,
        "n_critics": 3,
        "net_arch": {"qf": [8]},
    }
    model = tiny_model(DummyVecEnv([lambda: Mirror(kind)]), policy_kwargs=arguments).learn(24)
    model.policy.critic_is_ripe.fill_(True)
    model.policy.save(tmp_path / "policy.pkl")
    policy = FlowActorCriticPolicy.load(tmp_path / "policy.pkl", device="cpu")
    assert same(weights(policy), weights(model.policy)) and policy.n_candidates == 4
    assert model.env is not None
    observation = model.env.reset()
    actions = [each.predict(observation, deterministic=True)[0] for each in (model, policy)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(*actions)
    # The actor too has its own save and load
    model.actor.save(tmp_path / "actor.pkl")
    actor = type(model.actor).load(tmp_path / "actor.pkl", device="cpu")
    assert same(weights(actor), weights(model.actor))


def test_load_takes_another_jko_step_size(tmp_path: pathlib.Path) -> None:
    model = tiny_model(Mirror(), jko_step_size="auto_0.1").learn(40)
    model.save(tmp_path / "model")
    adapted = model.jko.step_size.value
    assert SWFP.load(tmp_path / "model").jko.step_size.value == adapted != 0.01
    assert SWFP.load(tmp_path / "model", jko_step_size=0.5).jko.step_size.value == 0.5
