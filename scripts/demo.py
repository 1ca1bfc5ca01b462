"""The main job, from start to end, on real code: `make demo`.

The team is played by the authors of PEFT, whose sources lie in this environment already: an adapter learns from most of
their files and is judged on files that it never saw. What runs are the commands that a user would type.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

SAMPLES, HELD_OUT, LENGTH = 600, 64, 160
NAME = "peft-authors"


def main() -> int:
    """Train, then show what changed; returns the exit status of what failed, 0 where nothing did."""
    found = importlib.util.find_spec("peft")
    if found is None or not found.submodule_search_locations:
        print("error: the package peft is not installed\n  hint: make demo installs it", file=sys.stderr)
        return 1
    sources = Path(found.submodule_search_locations[0])
    began = time.monotonic()
    place = Path("demo")
    place.mkdir(exist_ok=True)
    status = run(
        *("train", "--source", sources, "--name", NAME, "--output", place),
        *("--max-samples", SAMPLES, "--max-eval-samples", HELD_OUT, "--max-length", LENGTH, "--epochs", 1),
    ) or run("test-adapter", place / f"{NAME}.lora", "--rows", 0, "--show", 2, "--max-length", LENGTH)
    if status == 0:
        print(f"\n{time.monotonic() - began:.0f} seconds of training and judging. Now on your own code:")
        print(f"  {Path(sys.executable).parent}/neuralforge train --from-git ../my-project")
    return status


def run(*arguments: object) -> int:
    """Show a command as it would be typed, run it, return its exit status."""
    typed = [str(argument) for argument in arguments]
    shown = [str(Path(os.path.relpath(word))) if Path(word).is_absolute() else word for word in typed]
    print(f"\n$ neuralforge {shlex.join(shown)}", flush=True)
    program = Path(sys.executable).with_name("neuralforge")
    return subprocess.run([str(program), *typed], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
