"""Whole numbers of the command line, as argparse's `type`."""

from __future__ import annotations

import argparse


def whole(text: str) -> int:
    """A whole number ≥ 0."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"wanted a whole number ≥ 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number ≥ 1."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number ≥ 1, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"wanted a number from 0 to 1, got {text!r}")
    return value


def at_least_one(text: str) -> float:
    """A number ≥ 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"wanted a number ≥ 1, got {text!r}")
    return value
