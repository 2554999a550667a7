# SPDX-License-Identifier: Apache-2.0
"""Signals that are sent to `leasectl run` and meant for the command it runs.

Rule: a signal that the terminal sends (Ctrl-C) reaches every process of its foreground group, so a
command in that group is not sent it again. SIGHUP is the exception: when a terminal goes away, the
kernel sends it to the session's leader, which may be `leasectl` alone, so it is always passed on.

Does not end `leasectl` or the command: each does with a signal what it does with it.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

from leased.ctl.child import Child

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
SI_KERNEL: Final = 0x80
"""si_code of what the terminal sends."""


class Forwarding:
    """From `begin` to `end`, signals sent to us go to the command, unless the terminal sent them to
    both of us.

    They stay blocked after the end: what is left to do then is to give the lease back.
    """

    def __init__(self, child: Child) -> None:
        self._child: Child | None = child

    def begin(self) -> None:
        """Block them here, and wait for them in a thread of its own: only sigwaitinfo tells who
        sent one.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        threading.Thread(target=self._forward, daemon=True).start()

    def end(self) -> None:
        """Forward no more."""
        self._child = None

    def _forward(self) -> None:
        while True:
            told = signal.sigwaitinfo(FORWARDED)
            child = self._child
            try:
                if child is not None and not _has_it(child, told):
                    signal.pidfd_send_signal(child.pidfd, told.si_signo)
            except OSError:
                continue  # it is gone, and so is the need to tell it


def _has_it(child: Child, told: signal.struct_siginfo) -> bool:
    """Whether the command got it as we did. `timeout`, for one, leaves our process group."""
    if told.si_code != SI_KERNEL or os.getpgid(child.pid) != os.getpgrp():
        return False
    return told.si_signo != signal.SIGHUP or os.getsid(0) != os.getpid()
