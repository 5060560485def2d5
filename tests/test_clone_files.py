"""What a clone's file keeps, and cloning a model that has learned already."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import pytest
from tiny import Mirror, mirror_demonstrations, same, tiny_model, weights, with_demonstrations

from sb3_swfp import SWFP, DemonstrationReplayBuffer, Demonstrations, baselines


@pytest.mark.parametrize("kind", ["path", "object", "set by hand"])
@pytest.mark.parametrize("cls", [SWFP, baselines.IBRL])
def test_a_file_has_the_demonstrations_that_came_later(cls: type[Any], kind: str, tmp_path: pathlib.Path) -> None:
    """They would be missing from every batch of the next session, and nothing would say so."""
    path = tmp_path / "demonstrations.npz"
    mirror_demonstrations(5).save(path)
    arguments = dict(replay_buffer_class=DemonstrationReplayBuffer, learning_starts=10, batch_size=16)
    model = cls("FlowPolicy" if cls is SWFP else "MlpPolicy", Mirror(), **arguments)
    if kind == "set by hand":
        model.replay_buffer.set_demonstrations(str(path), n_demonstrations=3)
    model.pretrain(str(path) if kind == "path" else mirror_demonstrations(5), gradient_steps=5)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=Mirror())
    demonstrations = loaded.replay_buffer.demonstrations
    assert demonstrations is not None and len(demonstrations) == (3 if kind == "set by hand" else 5)
    saved = loaded.replay_buffer_kwargs["demonstrations"]
    assert isinstance(saved, Demonstrations) if kind == "object" else saved == str(path)
    loaded.learn(30)
    assert loaded.replay_buffer.last_demonstration_share > 0.0
    # Taken away, they are gone from the next file
    loaded.replay_buffer.set_demonstrations(None)
    loaded.save(tmp_path / "without")
    assert cls.load(tmp_path / "without", env=Mirror()).replay_buffer.demonstrations is None


def test_demonstrations_ask_for_the_buffer_that_holds_them() -> None:
    model = tiny_model(Mirror(), replay_buffer_kwargs=dict(demonstrations=mirror_demonstrations(2)))
    assert isinstance(model.replay_buffer, DemonstrationReplayBuffer)


def test_a_new_clone_is_tried_again() -> None:
    model = tiny_model(Mirror(), **with_demonstrations(mirror_demonstrations(5))).learn(60)
    assert model.policy.critic_is_ripe and model.ripeness.updates > 0
    scale = float(model.critic.scale)
    model.pretrain(gradient_steps=5)
    assert not model.policy.critic_is_ripe and not model.ripeness.with_picks
    assert float(model.critic.scale) == float(model.critic_target.scale) == scale  # or all values would be multiplied


def test_a_new_clone_of_a_baseline_leaves_learned_values_alone() -> None:
    model = baselines.IBRL("MlpPolicy", Mirror(), learning_starts=10, batch_size=16)
    model.learn(40)
    scale = float(model.critic.scale)
    model.pretrain(mirror_demonstrations(4), gradient_steps=5)
    assert float(model.critic.scale) == scale and not model.policy.can_judge


def test_a_model_saves_without_its_replay_buffer(tmp_path: pathlib.Path) -> None:
    model = tiny_model(Mirror(), **with_demonstrations(mirror_demonstrations(2)))
    del model.replay_buffer
    model.save(tmp_path / "model")
    assert SWFP.load(tmp_path / "model", env=Mirror()).replay_buffer_kwargs["demonstrations"] is not None


@pytest.mark.parametrize("cls", [SWFP, baselines.CloneSAC, baselines.DPPO])
def test_networks_of_a_clone_without_the_rest_are_warned_of(cls: type[Any], tmp_path: pathlib.Path) -> None:
    arguments: dict[str, Any] = {"n_steps": 16, "batch_size": 16} if cls is baselines.DPPO else {}
    clone, other = (cls("MlpPolicy", Mirror(), **arguments) for _ in range(2))
    other.save(tmp_path / "untrained")
    clone.pretrain(mirror_demonstrations(4), gradient_steps=5)
    clone.save(tmp_path / "clone")
    with pytest.warns(UserWarning, match=rf"as from scratch. To fine-tune it: {cls.__name__}.load\("):
        other.set_parameters(str(tmp_path / "clone"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.set_parameters(tmp_path / "untrained")
        clone.set_parameters(tmp_path / "clone.zip")
        (tmp_path / "untrained.zip").rename(tmp_path / "untrained.v1.zip")
        other.set_parameters(str(tmp_path / "untrained.v1"))  # SB3 appends the suffix
        cls.load(tmp_path / "clone", env=Mirror())


def test_cloning_after_learning() -> None:
    """SB3's Gaussian actor keeps a graph of its last actions, of which no copy can be made."""
    model = baselines.CloneSAC("MlpPolicy", Mirror(), learning_starts=10, batch_size=16)
    model.learn(30)
    before = weights(model.actor)
    result = model.pretrain(mirror_demonstrations(4), gradient_steps=5)
    assert result.gradient_steps == 5 and model.is_pretrained and not same(weights(model.actor), before)
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 50
