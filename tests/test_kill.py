"""The real process, killed at random moments of its life, ends in the bytes of an uninterrupted one."""

import kill_runs


def test_a_run_killed_twelve_times_loses_nothing(tmp_path):
    fell, different = kill_runs.kill_and_resume(tmp_path, kills=12, seed=1)
    assert different == 0
    assert sum(fell.values()) == 12 and fell["training"] >= 3
