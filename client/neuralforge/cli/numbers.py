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
