"""hyperparams/swfp.yml: every entry can be handed to SWFP."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from sb3_swfp import SWFP
from sb3_swfp.policies import FlowActorCriticPolicy

yaml = pytest.importorskip("yaml", reason="needs PyYAML")
ENTRIES: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "hyperparams" / "swfp.yml").read_text())


@pytest.mark.parametrize("env_id", ENTRIES)
def test_entries_name_arguments_that_exist(env_id: str) -> None:
    entry = dict(ENTRIES[env_id])
    assert entry.pop("n_timesteps") > 0 and entry.pop("policy") in SWFP.policy_aliases
    for key in ("normalize", "noise_type", "noise_std"):  # for RL Zoo itself
        entry.pop(key, None)
    policy_kwargs = eval(entry.pop("policy_kwargs", "{}"))  # RL Zoo evaluates this string, too
    assert set(policy_kwargs) <= set(inspect.signature(FlowActorCriticPolicy).parameters)
    assert set(entry) <= set(inspect.signature(SWFP).parameters)
