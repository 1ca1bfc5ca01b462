"""`adapters yank`: a version that was a mistake is no longer found."""

from __future__ import annotations

import argparse

from neuralforge.cli.registry_choice import add_registry, chosen_registry

NAME = "yank"
SUMMARY = "Take a version out of searches and of the latest; whoever names it exactly still gets it, with a warning."
EXAMPLES = """\
  neuralforge adapters yank my-company/spring-boot-expert@1.2.0 --reason 'trained on generated code'"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("release", metavar="TEAM/NAME@VERSION", help="which")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="for those who pull it nevertheless")
    add_registry(parser)


def run(args: argparse.Namespace) -> int:
    """Yank it."""
    from neuralforge.registry.yank import yank
    from neuralforge_common.errors import UsageError
    from neuralforge_common.registry.release import ReleaseName

    release = ReleaseName.parse(args.release)
    if release.version is None:
        raise UsageError(f"which version of {release}? wanted {release}@1.2.0")
    with chosen_registry(args) as connection:
        yank(connection, release, reason=args.reason)
    print(f"yanked {release}: {args.reason}")
    return 0
