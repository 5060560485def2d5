"""Saving models: the new file is complete before the old one goes. (``files`` stays free of third-party imports.)"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_swfp.files import atomic_path


class AtomicSave(BaseAlgorithm):
    """An SB3 algorithm whose file is never half written. To be listed before the algorithm's own base class."""

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save as SB3 does, but replace an existing file only once the new one is complete.

        :param path: Path (".zip" is added where there is no suffix) or open file
        :param exclude: Names of attributes to leave out
        :param include: Names of attributes to keep in spite of the defaults
        """
        if not isinstance(path, (str, pathlib.Path)):
            return super().save(path, exclude, include)
        path = pathlib.Path(path)
        with atomic_path(path if path.suffix else path.with_suffix(".zip")) as temporary:
            super().save(temporary, exclude, include)
