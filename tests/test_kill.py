"""The real process, killed at random moments of its life, ends in the bytes of an uninterrupted one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import kill_runs


def test_a_run_killed_thirty_times_loses_nothing(tmp_path):
    fell, different = kill_runs.kill_and_resume(tmp_path, kills=30, seed=1)
    assert different == 0
    assert sum(fell.values()) == 30 and fell["training"] >= 3
