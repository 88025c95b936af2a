"""What the operating system can do for work that must not be late, and against work that may."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

PRIORITY, ALARMING = 10, 5
"""SCHED_FIFO priorities, above every ordinary process and below the kernel's own threads: of the arm; of what may stop it."""

NICER = 10
AUTOGROUP, TASKS = Path("/proc/self/autogroup"), Path("/proc/self/task")


def ask_for_priority(priority: int = PRIORITY, *, all_threads: bool = False) -> str:
    """Schedule the calling thread before ordinary ones, if allowed; says in words what was granted.

    With ``all_threads`` all that the process has now: those in which the middleware receives, too.
    """
    try:
        for thread in map(int, os.listdir(TASKS)) if all_threads else (0,):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setscheduler(
                    thread, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority)
                )
    except (PermissionError, AttributeError):
        return (
            "ordinary priority (real-time priority needs `ulimit -r`): periods lengthen on a loaded machine"
        )
    return f"real-time priority {priority}"


def settle_memory() -> None:
    """Take what exists now out of the garbage collector's sight: its passes are then short."""
    gc.collect()
    gc.freeze()


def step_forward(*, all_threads: bool = False) -> bool:
    """Let the calling thread run before ordinary ones, if allowed: work that others wait for. False if it is not allowed.

    With ``all_threads`` all that the process has now, the middleware's too. Threads inherit from the one that starts them.
    Where the kernel groups processes by session (autogroup, the default of most desktops) a thread's niceness counts inside
    its session only; so the session, which is the process's own if a supervisor started it, steps forward too.
    """
    try:
        for thread in map(int, os.listdir(TASKS)) if all_threads else (0,):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.setpriority(os.PRIO_PROCESS, thread, -NICER)
        if os.getsid(0) == os.getpid():
            AUTOGROUP.write_text(str(-NICER))
    except PermissionError:
        return False
    except OSError:  # a kernel without groups
        return True
    return True


def stand_back() -> None:
    """Let the calling thread, and those it starts, run after ordinary ones: work that nobody waits for."""
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICER))
