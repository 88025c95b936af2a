"""The supervisor with small real processes."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vigil.errors import VigilError
from vigil.run.supervisor import ProcessSpec, Supervisor, last_error

SLEEPER = "import signal, time; print('up', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time\n"
    "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
    "print('up', flush=True)\n"
    "time.sleep(60)"
)


def python(name, code, respawn=True):
    return ProcessSpec(name, [sys.executable, "-S", "-c", code], respawn)


def wait_for(condition, timeout=10.0):
    until = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < until, "condition not met in time"
        time.sleep(0.01)
    return result


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def says_up(supervisor, name):
    return "up" in supervisor.log(name).read_text()


def test_processes_run_with_a_log_each_and_end_on_stop(tmp_path):
    with Supervisor([python("a", SLEEPER), python("b", SLEEPER)], tmp_path, os.environ) as supervisor:
        pids = [status.pid for status in supervisor.statuses()]
        wait_for(lambda: says_up(supervisor, "a") and says_up(supervisor, "b"))
        assert [status.name for status in supervisor.statuses()] == ["a", "b"]
        assert all(status.running and status.starts == 1 for status in supervisor.statuses())
    assert not any(alive(pid) for pid in pids)


def test_they_end_in_reverse_order(tmp_path):
    note = "open({path!r}, 'a').write('{name}')"
    end = tmp_path / "ends"
    code = "import signal, sys, time\nsignal.signal(2, lambda *_: ({note}, sys.exit(0)))\nprint('up', flush=True)\ntime.sleep(60)"
    specs = [python(name, code.format(note=note.format(path=str(end), name=name))) for name in "abc"]
    with Supervisor(specs, tmp_path, os.environ) as supervisor:
        wait_for(lambda: all(says_up(supervisor, name) for name in "abc"))
    assert end.read_text() == "cba"


def test_one_that_ignores_sigint_and_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "vigil.run.supervisor.ESCALATION",
        ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0)),
    )
    with Supervisor([python("stubborn", STUBBORN)], tmp_path, os.environ) as supervisor:
        wait_for(lambda: says_up(supervisor, "stubborn"))
        pid = supervisor.status("stubborn").pid
    assert not alive(pid)
    assert supervisor.status("stubborn").ending() == "was killed by SIGKILL"


def test_a_killed_process_is_restarted_and_told(tmp_path):
    ends = []
    with Supervisor([python("a", SLEEPER)], tmp_path, os.environ, ends.append) as supervisor:
        first = supervisor.status("a").pid
        os.kill(first, signal.SIGKILL)
        status = wait_for(lambda: (s := supervisor.status("a")).starts == 2 and s.running and s)
        assert status.pid != first
    assert [(status.name, status.exit_code) for status in ends] == [("a", -9)]


def test_backoff_doubles(tmp_path, monkeypatch):
    monkeypatch.setattr("vigil.run.supervisor.FIRST_BACKOFF", 0.2)
    code = f"import time; open({str(tmp_path / 'starts')!r}, 'a').write(f'{{time.monotonic()}}\\n'); raise SystemExit(3)"
    ends = []
    with Supervisor([python("broken", code)], tmp_path, os.environ, ends.append) as supervisor:
        wait_for(lambda: supervisor.status("broken").starts >= 4)
    starts = [float(line) for line in (tmp_path / "starts").read_text().split()][:3]
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert gaps[0] >= 0.2
    assert gaps[1] >= 0.4
    assert ends[0].ending() == "ended with exit code 3"


def test_without_respawn_it_stays_down(tmp_path):
    specs = [python("once", "pass", respawn=False), python("marker", "raise SystemExit(1)")]
    with Supervisor(specs, tmp_path, os.environ) as supervisor:
        wait_for(lambda: supervisor.status("marker").starts >= 2 and not supervisor.status("once").running)
        assert supervisor.status("once").starts == 1


def test_grandchildren_do_not_survive(tmp_path):
    pid_file = tmp_path / "grandchild"
    code = f"import subprocess, time; p = subprocess.Popen(['sleep', '60']); open({str(pid_file)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    with Supervisor([python("parent", code)], tmp_path, os.environ) as supervisor:
        grandchild = int(wait_for(lambda: pid_file.exists() and pid_file.read_text()))
        os.kill(supervisor.status("parent").pid, signal.SIGKILL)
        wait_for(lambda: not alive(grandchild))


def test_no_orphans_when_the_supervisor_itself_is_killed(tmp_path):
    code = textwrap.dedent(
        f"""
        import os, pathlib, sys, time
        from vigil.run.supervisor import ProcessSpec, Supervisor
        spec = ProcessSpec("child", [sys.executable, "-S", "-c", {STUBBORN!r}])
        supervisor = Supervisor([spec], pathlib.Path({str(tmp_path)!r}), os.environ)
        supervisor.start()
        print(supervisor.status("child").pid, flush=True)
        time.sleep(60)
        """
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        child = int(owner.stdout.readline())
        wait_for(lambda: "up" in (tmp_path / "child.log").read_text())
        assert alive(child)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    wait_for(lambda: not alive(child))


def test_a_program_that_does_not_exist_is_told_by_its_log(tmp_path):
    with Supervisor(
        [ProcessSpec("x", ["/nonexistent/program"], respawn=False)], tmp_path, os.environ
    ) as supervisor:
        wait_for(lambda: supervisor.status("x").exit_code is not None)
        assert "/nonexistent/program" in last_error(supervisor.log("x"))


def test_names_must_differ(tmp_path):
    with pytest.raises(VigilError, match="repeat"):
        Supervisor([python("a", SLEEPER), python("a", SLEEPER)], tmp_path, os.environ)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("[INFO] [1.2] hello\nTraceback (most recent call last):\n  x\nValueError: bad\n", "ValueError: bad"),
        ("[FATAL] [17.5] cannot configure: no bundle\n[INFO] [18.0] bye\n", "cannot configure: no bundle"),
        ("[ERROR] [17.5] [arm]: late\nmore\n", "late"),
        ("error: rig 'x' is unknown\n", "rig 'x' is unknown"),
        ("[FATAL] old\n--- start 2 ---\nnew problem\n", "new problem"),
    ],
)
def test_last_error(tmp_path, text, expected):
    log = tmp_path / "x.log"
    log.write_text(text)
    assert last_error(log) == expected


def test_last_error_without_a_log(tmp_path):
    assert last_error(tmp_path / "none.log") == ""
