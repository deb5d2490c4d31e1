"""Killed runs end where the one that was left alone ends (the command tries more: --kills=20)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.studies import kill_and_resume

ROOT = Path(__file__).resolve().parents[3]


def test_a_run_that_is_killed_twice_ends_as_if_it_had_not_been(tmp_path):
    done = subprocess.run([sys.executable, "-m", "experiments.studies.kill_and_resume", "--kills=2", "--steps=8",
                           "--stretch=0.3", f"--workdir={tmp_path}/w"], cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills: 0 while starting" in done.stdout
    assert int(re.search(r"(\d+) runs reached step 8", done.stdout)[1]) >= 1
    assert "in the state of the one that was left alone, bit for bit" in done.stdout
    # And the comparison can tell.
    straight, other = tmp_path / "w" / "straight", tmp_path / "other"
    shutil.copytree(straight, other)
    assert kill_and_resume.differences(straight, other, 8) == []
    file = other / "supervised" / "metrics.jsonl"
    file.write_text(file.read_text().replace('"train/loss": ', '"train/loss": 1'))
    assert kill_and_resume.differences(straight, other, 8) == ["metrics.jsonl"]
    shutil.rmtree(other / "supervised" / "8")
    shutil.copytree(other / "supervised" / "6", other / "supervised" / "8")
    found = kill_and_resume.differences(straight, other, 8)
    assert "['data']['iterator']['next_index']" in found
    assert any(name.startswith("['params']") for name in found)
