"""
What stands between RL Zoo's ``push_to_hub`` and ``load_from_hub`` and the Hugging Face packages of today.

rl_zoo3 2.9.2, the newest, depends on sb3-team-hf-integration (imported as ``huggingface_sb3``), whose only release is
3.2, and through it on huggingface_hub 2. Both commands fail on them, whatever the algorithm, and there are no other
versions to choose: rl_zoo3 2.9.1 works with its own Hugging Face packages, but these record no videos of today's SB3
and hold huggingface_hub below 1.
"""

from __future__ import annotations

import functools
from typing import Any

from huggingface_hub.errors import EntryNotFoundError


def complete_hub(package: Any, pushing: Any) -> None:
    """
    Give the Zoo what it expects of ``huggingface_sb3``; where that has it already, nothing changes.

    :param package: ``huggingface_sb3``
    :param pushing: ``huggingface_sb3.push_to_hub``, which the package hides behind the function of that name
    """
    # The Zoo wants the dictionary that this function returned under its old name
    if not hasattr(pushing, "generate_metadata") and hasattr(pushing, "_generate_metadata"):
        pushing.generate_metadata = lambda *args: pushing._generate_metadata(*args).to_dict()
    if not hasattr(package.load_from_hub, "__wrapped__"):
        package.load_from_hub = _with_requests_errors(package.load_from_hub)


def _with_requests_errors(load_from_hub: Any) -> Any:
    """
    The Zoo asks for files that a repository need not have, and expects the exception of ``requests`` for those. Since
    huggingface_hub 1 it is another one; this one is both.
    """

    @functools.wraps(load_from_hub)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return load_from_hub(*args, **kwargs)
        except EntryNotFoundError as error:
            from requests.exceptions import HTTPError

            missing = type("EntryNotFoundError", (EntryNotFoundError, HTTPError), {})
            raise missing(str(error)) from error

    return wrapped
