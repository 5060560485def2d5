"""Types of command-line arguments that several commands take."""

from __future__ import annotations

import argparse


def seed_range(text: str) -> list[int]:
    """
    :param text: ``"3"``, ``"0-2"`` or ``"0,2,5"``
    :return: The seeds
    :raises argparse.ArgumentTypeError: if it is none of these
    """
    try:
        first, _, last = text.partition("-")
        seeds = list(range(int(first), int(last) + 1)) if last else [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of seeds: 3, 0-2 or 0,2,5")
    return seeds


def positive(text: str) -> int:
    """
    :param text: Value of a command-line argument
    :return: Its number
    :raises argparse.ArgumentTypeError: if it is no whole number from 1 on
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)
