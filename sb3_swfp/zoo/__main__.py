"""``python -m sb3_swfp.zoo train --algo swfp ...``: RL Zoo's commands where start-up hooks are forbidden."""

from __future__ import annotations

import runpy
import sys

from sb3_swfp.zoo import register

#: Commands and the Zoo's modules behind them
COMMANDS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "record_video": "rl_zoo3.record_video",
    "record_training": "rl_zoo3.record_training",
    "push_to_hub": "rl_zoo3.push_to_hub",
    "load_from_hub": "rl_zoo3.load_from_hub",
    "plot_train": "rl_zoo3.plots.plot_train",
    "plot_from_file": "rl_zoo3.plots.plot_from_file",
    "all_plots": "rl_zoo3.plots.all_plots",
}


def main() -> None:
    """
    Register this package's algorithms, then run the Zoo's module as ``python -m`` would.

    :raises SystemExit: for an unknown command, or if RL Zoo is not installed
    """
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"usage: python -m sb3_swfp.zoo {{{','.join(COMMANDS)}}} [the command's own arguments]")
    module = COMMANDS[sys.argv.pop(1)]
    try:
        register()
    except ImportError as error:
        raise SystemExit(str(error)) from error
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
