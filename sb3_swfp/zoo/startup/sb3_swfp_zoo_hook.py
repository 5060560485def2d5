"""
Makes RL Zoo know SWFP and its baselines: imported by ``sb3_swfp_zoo.pth`` whenever this Python starts.

RL Zoo reads its dictionary of algorithms before it imports anything of the user's, and has no plugin entry point. So an
import hook waits for the Zoo's modules and completes them as they are imported; until then it costs one look-up in a
set per import. ``SB3_SWFP_ZOO_HOOK=0`` switches it off. Only the standard library is imported here, and what is not
loaded at start-up anyway is imported late: this runs at every start of the interpreter.
"""

import sys

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

#: What is completed, as ``sb3_swfp.zoo.register`` does it
ZOO_MODULES = frozenset({"rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager"})


class _Loader:
    """The module's own loader, and then the completion."""

    def __init__(self, loader: "Loader") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        return self._loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        self._loader.exec_module(module)
        try:
            from sb3_swfp.zoo.registration import complete

            complete(module)
        except Exception as error:  # the Zoo must work for all other algorithms, whatever is wrong here
            print(f"sb3_swfp: could not register with RL Zoo ({type(error).__name__}: {error})", file=sys.stderr)


class ZooFinder:
    """Finds nothing itself; wraps the loader that the other finders have found for one of the Zoo's modules."""

    @staticmethod
    def find_spec(
        fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if fullname not in ZOO_MODULES:
            return None
        for finder in sys.meta_path:
            if finder is ZooFinder or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


if ZooFinder not in sys.meta_path:
    sys.meta_path.insert(0, ZooFinder)
