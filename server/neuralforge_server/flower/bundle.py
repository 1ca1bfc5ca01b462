"""The Flower App Bundle that a run is started with: a description and no code, as the apps are installed packages."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from flwr.cli.build import build_fab_from_files


def app_description() -> str:
    """The app's pyproject.toml; `configs/flower-app` is the same file for a Flower of one's own."""
    return files("neuralforge_server.flower").joinpath("flower_app.toml").read_text("utf-8")


@cache
def build_bundle() -> bytes:
    """The bundle; the same bytes every time."""
    content, _ = build_fab_from_files({"pyproject.toml": app_description().encode()})
    return content
