"""RL Zoo: every algorithm of this package through the Zoo's train and enjoy, and what it says to bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import tiny
import yaml
from stable_baselines3 import HerReplayBuffer

pytest.importorskip("rl_zoo3", reason='needs RL Zoo: pip install "sb3-swfp[zoo]"')

from sb3_swfp import SWFP, DemonstrationReplayBuffer  # noqa: E402
from sb3_swfp.baselines import RLPD, CalQL, CloneSAC  # noqa: E402
from sb3_swfp.callbacks import PretrainCallback  # noqa: E402
from sb3_swfp.zoo import register  # noqa: E402
from sb3_swfp.zoo.manager import _keep_the_files_buffer, hyperparameter_names  # noqa: E402
from sb3_swfp.zoo.registration import ALGORITHMS, algorithm_class  # noqa: E402

OFF_POLICY = {
    "n_timesteps": 60,
    "learning_starts": 20,
    "batch_size": 16,
    "buffer_size": 200,
    "replay_buffer_kwargs": "dict(demonstrations='demos.npz')",
}
FLOW = OFF_POLICY | {"policy": "FlowPolicy", "replay_buffer_class": "DemonstrationReplayBuffer"}
GAUSSIAN = OFF_POLICY | {"policy": "MlpPolicy", "policy_kwargs": "dict(net_arch=[16], n_critics=2)"}
#: Entries under which each algorithm sees some of everything within 60 steps
ENTRIES: dict[str, dict[str, Any]] = {
    "swfp": FLOW,
    "swfp_kl": FLOW,
    "rlpd": GAUSSIAN | {"gradient_steps": 2, "policy_delay": 2},
    "calql": GAUSSIAN | {"cql_n_actions": 2},
    "ibrl": GAUSSIAN,
    "clone_sac": GAUSSIAN,
    # As the Zoo has PPO: several environments, normalised
    "dppo": {
        "n_timesteps": 60,
        "policy": "FlowPolicy",
        "n_envs": 2,
        "normalize": True,
        "n_steps": 15,
        "batch_size": 10,
        "n_epochs": 1,
        "critic_warmup_rollouts": 1,
        "demonstrations": "demos.npz",
    },
}


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Zoo's commands, in this process (starting a Python for each takes longer) and in a folder of the test's."""
    register()
    from rl_zoo3.enjoy import enjoy
    from rl_zoo3.train import train

    monkeypatch.chdir(tmp_path)

    def run(command: str, algorithm: str, *arguments: str, env_id: str = "Pendulum-v1") -> None:
        command_line = [command, "--algo", algorithm, "--env", env_id, *arguments]
        monkeypatch.setattr(sys, "argv", command_line)
        {"train": train, "enjoy": enjoy}[command]()

    return run


def write_demonstrations() -> None:
    """Write ``demos.npz``: random actions on Pendulum."""
    env = gym.make("Pendulum-v1", max_episode_steps=20)
    tiny.record(env, 3, lambda _: env.action_space.sample()).save("demos.npz")


def write_entry(algorithm: str, callback: dict[str, Any] | None, env_id: str = "Pendulum-v1") -> str:
    """Write ``entry.yml``, whose one entry has the ``PretrainCallback`` with these arguments; return its name."""
    entry = dict(ENTRIES[algorithm])
    if callback is not None:
        entry["callback"] = [{"sb3_swfp.callbacks.PretrainCallback": callback}]
    Path("entry.yml").write_text(yaml.safe_dump({env_id: entry}))
    return "entry.yml"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_from_demonstrations_to_online_and_on(algorithm: str, zoo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_demonstrations()
    cls: Any = algorithm_class(algorithm)
    config = write_entry(algorithm, {"gradient_steps": 5} if hasattr(cls, "pretrain") else None)
    zoo("train", algorithm, "-conf", config, "--eval-freq", "30", "--eval-episodes", "1", "--log-interval", "1")
    output = capsys.readouterr().out
    said = {"rlpd": "", "calql": "Pretrained on the demonstrations"}.get(
        algorithm, "Cloned the demonstrations in 5 steps"
    )
    assert said in output and f"Saving to logs/{algorithm}/Pendulum-v1_1" in output
    saved = f"logs/{algorithm}/Pendulum-v1_1/Pendulum-v1.zip"
    model = cls.load(saved)
    assert model.num_timesteps == 60 and getattr(model, "is_pretrained", True)
    # What is resumed is not cloned again
    zoo("train", algorithm, "-conf", config, "-i", saved, "--eval-freq", "-1")
    output = capsys.readouterr().out
    assert "Loading pretrained agent" in output and "the demonstrations" not in output
    zoo("enjoy", algorithm, "-f", "logs", "-n", "200", "--no-render")
    assert "Mean reward" in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_shipped_entry(algorithm: str, zoo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["-n", "8", "--eval-freq", "-1", *(["-params", "n_steps:4", "batch_size:4"] if algorithm == "dppo" else [])]
    zoo("train", algorithm, *few)
    zoo("train", algorithm, *few, env_id="MountainCarContinuous-v0")
    output = capsys.readouterr().out
    assert f"hyperparams/{algorithm}.yml" in output and output.count("Saving to") == 2


def test_box2d(zoo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("Box2D", reason='needs Box2D: pip install "sb3-swfp[box2d]"')
    zoo("train", "swfp", "-n", "8", "--eval-freq", "-1", env_id="LunarLanderContinuous-v3")
    assert "Saving to" in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bad_input_is_one_line(algorithm: str, zoo: Any) -> None:
    name = algorithm_class(algorithm).__name__

    def message(*arguments: str, env_id: str = "Pendulum-v1") -> str:
        with pytest.raises(SystemExit) as raised:
            zoo("train", algorithm, *arguments, "-n", "8", env_id=env_id)
        line, hint = str(raised.value.code).split("\n")
        assert line.startswith(f"{algorithm}: ") and hint == "(--verbose 2 shows where it happened)"
        return line

    assert f"{name} needs continuous actions" in message(env_id="CartPole-v1")
    assert f"{name} has no hyperparameter 'bath_size'" in message("-params", "bath_size:1")
    assert "did you mean 'batch_size'" in message("-params", "bath_size:1")
    missing = [
        "replay_buffer_kwargs:dict(demonstrations='nowhere.npz')",
        "replay_buffer_class:'DemonstrationReplayBuffer'",
    ]
    if algorithm == "dppo":
        missing = ["demonstrations:'nowhere.npz'"]
    assert "nowhere.npz" in message("-params", *missing)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_files_of_other_algorithms_are_refused(algorithm: str, zoo: Any) -> None:
    from stable_baselines3 import SAC

    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs={"net_arch": [8]}).save("sac.zip")
    other: Any = CloneSAC if "FlowPolicy" in algorithm_class(algorithm).policy_aliases else SWFP
    other("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs={"net_arch": [8]}).save("other.zip")
    whole = Path("other.zip").read_bytes()
    Path("truncated.zip").write_bytes(whole[: len(whole) // 2])
    Path("empty.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    for name in ("sac.zip", "other.zip", "truncated.zip", "empty.zip"):
        with pytest.raises(SystemExit, match=f"^{algorithm}: cannot continue from {name}: [^\n]*\n[^\n]*$"):
            zoo("train", algorithm, "-i", name, "-n", "8", "--eval-freq", "-1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-params", "replay_buffer_class:'DemonstrationBuffer'"], "name 'DemonstrationBuffer' is not defined"),
        (["-params", "replay_buffer_kwargs:'dict('"], "was never closed"),
        (["-params", "callback:'sb3_swfp.callbacks.PretrainCalback'"], "PretrainCalback"),
        (["-params", "callback:'sb3_swfp.callbacks.PretrainCallback'"], "nothing to clone"),
        (
            ["-params", "callback:'sb3_swfp.callbacks.PretrainCallback'", "-optimize", "--n-trials", "1"],
            "nothing to clone",
        ),
        (
            ["-params", "replay_buffer_class:'DemonstrationReplayBuffer'"]
            + ["replay_buffer_kwargs:dict(demonstrations='nowhere.npz')", "-optimize", "--n-trials", "1"],
            "nowhere.npz",
        ),
        (["-conf", "broken.yml"], "ParserError: .*broken.yml"),
        (["-i", "clone.zip"], "demonstrations it was trained with are missing: .*gone.npz"),
        (["-i", "damaged/model.zip"], "cannot continue from damaged/model.zip: UnpicklingError"),
        (["-i", "damaged/model.zip", "-params", "normalize:True"], "statistics that have seen no data"),
    ],
    ids=str,
)
def test_more_bad_input(arguments: list[str], message: str, zoo: Any) -> None:
    write_demonstrations()
    Path("broken.yml").write_text("Pendulum-v1: {policy: FlowPolicy,\n  gamma: [")
    Path("damaged").mkdir()
    model = tiny.tiny_model("Pendulum-v1")
    model.pretrain("demos.npz", gradient_steps=2)
    model.save("damaged/model.zip")
    Path("damaged/replay_buffer.pkl").write_bytes(b"not a pickle")
    Path("demos.npz").rename("gone.npz")
    with_gone = tiny.tiny_model("Pendulum-v1", **tiny.with_demonstrations("gone.npz"))
    with_gone.save("clone.zip")
    Path("gone.npz").unlink()
    with pytest.raises(SystemExit, match=f"^swfp: [^\n]*{message}[^\n]*\n[^\n]*$"):
        zoo("train", "swfp", *arguments, "-n", "8", "--eval-freq", "-1")


def test_a_file_keeps_its_demonstrations_beside_an_entry_with_another_buffer(zoo: Any) -> None:
    """The Fetch entries ask for hindsight; the file has demonstrations, and a plain buffer."""
    data = {
        "replay_buffer_class": DemonstrationReplayBuffer,
        "replay_buffer_kwargs": {"demonstrations": "demos.npz", "demonstration_share": 0.25},
    }
    hyperparams: dict[str, Any] = {
        "replay_buffer_class": HerReplayBuffer,
        "replay_buffer_kwargs": {"n_sampled_goal": 2},
    }
    _keep_the_files_buffer(hyperparams, data)
    assert hyperparams["replay_buffer_class"] is DemonstrationReplayBuffer
    assert hyperparams["replay_buffer_kwargs"] == {
        "demonstrations": "demos.npz",
        "demonstration_share": 0.25,
        "online_buffer_class": HerReplayBuffer,
        "n_sampled_goal": 2,
    }
    other: dict[str, Any] = {}
    _keep_the_files_buffer(other, data)
    assert other == {}


def test_noise_is_for_algorithms_that_have_it(zoo: Any) -> None:
    noise = ("-params", "noise_type:'normal'", "noise_std:0.1", "-n", "8", "--eval-freq", "-1")
    zoo("train", "rlpd", *noise)
    with pytest.raises(SystemExit, match="DPPO has no hyperparameter 'noise_type'"):
        zoo("train", "dppo", *noise)


def test_names_of_hyperparameters_include_inherited_ones() -> None:
    names = hyperparameter_names(RLPD)
    assert {"gradient_steps", "critic_scale", "buffer_size"} <= names
    assert not names & {"self", "env", "kwargs", "_init_setup_model", "support_multi_env"}


def test_pretrain_callback_says_at_once_what_does_not_fit(zoo: Any) -> None:
    with pytest.raises(ValueError, match=r"RLPD has none"):
        PretrainCallback().check(RLPD)
    with pytest.raises(ValueError, match=r"CalQL.pretrain\(\) has no argument 'patience'; it has batch_size, "):
        PretrainCallback(patience=3).check(CalQL)
    write_demonstrations()
    with pytest.raises(SystemExit, match="^rlpd: ValueError: PretrainCallback needs an algorithm"):
        zoo("train", "rlpd", "-conf", write_entry("rlpd", {}), "--eval-freq", "-1")
