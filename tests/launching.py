"""Commands that put something right about their process and then become another program.

What `preexec_fn` does is done here in the new process itself: with that argument Python forks, and a fork of a process
that has used gRPC runs handlers that can hang before the program begins.
"""

from __future__ import annotations

import sys

# Whoever runs the tests in a shell's background has had Ctrl-C ignored, and children inherit that.
_HEAR_CTRL_C = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
# The first terminal that the leader of a session opens is the one that controls it.
_TAKE_TERMINAL = "os.close(os.open(os.ttyname(0), os.O_RDWR)); "
_BECOME = "os.execv(sys.argv[1], sys.argv[1:])"


def hears_ctrl_c(command: list[str]) -> list[str]:
    """The command, ended by SIGINT as in a shell's foreground."""
    return [sys.executable, "-ISc", _HEAR_CTRL_C + _BECOME, *command]


def takes_terminal(command: list[str]) -> list[str]:
    """The command, for `start_new_session`: its standard input becomes its controlling terminal."""
    return [sys.executable, "-ISc", _HEAR_CTRL_C + _TAKE_TERMINAL + _BECOME, *command]
