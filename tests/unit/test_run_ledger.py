"""Long runs that can be stopped and resumed."""

import pytest

from vigil.errors import VigilError
from vigil.run.ledger import Ledger


def test_a_resumed_run_knows_its_episodes(tmp_path):
    first = Ledger(tmp_path / "run", {"seed": 1})
    first.add({"seed": 1, "outcome": "success"})
    assert Ledger(tmp_path / "run", {"seed": 1}).episodes == [{"seed": 1, "outcome": "success"}]


def test_a_line_cut_short_by_a_kill_is_dropped_and_the_file_stays_whole(tmp_path):
    ledger = Ledger(tmp_path, {})
    ledger.add({"seed": 1})
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"seed": 2, "outc')
    again = Ledger(tmp_path, {})
    assert again.episodes == [{"seed": 1}]
    again.add({"seed": 2})
    assert Ledger(tmp_path, {}).episodes == [{"seed": 1}, {"seed": 2}]


def test_other_settings_are_refused_by_name(tmp_path):
    Ledger(tmp_path, {"seed": 1, "episodes": 5})
    Ledger(tmp_path, {"seed": 1, "episodes": 9}, may_change=("episodes",))
    with pytest.raises(VigilError, match=r"seed 1 \(now 2\).*another --out"):
        Ledger(tmp_path, {"seed": 2, "episodes": 9}, may_change=("episodes",))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VigilError, match="cannot write to"):
        Ledger(tmp_path / "file", {})
