"""Priorities, in processes of their own."""

import os
import subprocess
import sys

import pytest

from vigil.scheduling import AUTOGROUP


def in_a_process(code: str, *, session: bool) -> str:
    command = [
        sys.executable,
        "-c",
        f"import os\nfrom vigil.scheduling import *\n{code}",
    ]
    done = subprocess.run(command, start_new_session=session, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_who_stands_back_runs_after_others():
    told = in_a_process("stand_back(); print(os.getpriority(os.PRIO_PROCESS, 0))", session=False)
    assert int(told) >= 10


@pytest.mark.skipif(os.geteuid() != 0, reason="to step forward takes rights that only root has here")
@pytest.mark.parametrize("session", [True, False])
def test_who_steps_forward_takes_along_the_session_that_is_its_own(session):
    code = """
group = lambda: AUTOGROUP.read_text() if AUTOGROUP.exists() else "none"
print(group().strip(), step_forward(), os.getpriority(os.PRIO_PROCESS, 0), group().strip(), sep="|")"""
    before, granted, niceness, after = in_a_process(code, session=session).split("|")
    assert granted == "True" and int(niceness) == -10
    if AUTOGROUP.exists() and session:
        assert before.endswith("nice 0") and after.endswith("nice -10")
    else:  # a session that others share is not taken along
        assert after == before


@pytest.mark.skipif(os.geteuid() != 0, reason="to step forward takes rights that only root has here")
@pytest.mark.parametrize(("all_threads", "expected"), [(True, "-10 -10"), (False, "0 -10")])
def test_threads_are_taken_along_on_request(all_threads, expected):
    code = f"""
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
step_forward(all_threads={all_threads})
print(*sorted((os.getpriority(os.PRIO_PROCESS, int(t)) for t in os.listdir(TASKS)), reverse=True))"""
    assert in_a_process(code, session=True) == expected


def test_who_may_not_step_forward_is_told():
    code = """
if os.geteuid() == 0:
    os.setuid(65534)
print(step_forward())"""
    assert in_a_process(code, session=True) == "False"
