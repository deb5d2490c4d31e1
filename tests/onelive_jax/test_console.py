"""`onelive COMMAND`: finds the commands of a checkout and runs them from any folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

from onelive_jax import console

ROOT = Path(__file__).resolve().parents[2]
START = [sys.executable, "-c", "from onelive_jax.console import main; main()"]


def onelive(folder, *arguments):
    return subprocess.run([*START, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)


def test_every_command_of_the_readme_has_a_name():
    known = console.commands(ROOT)
    readme = (ROOT / "README.md").read_text("utf-8")
    named = set(re.findall(r"python -m ((?:experiments|data_pipelines)\.[\w.]+)", readme))
    assert len(named) > 8
    assert named <= set(known.values())
    assert known["run"] == "experiments.run"
    assert known["simulator"] == "data_pipelines.simulator"


def test_it_lists_what_there_is_and_refuses_what_is_not(tmp_path):
    listed = onelive(tmp_path)
    assert listed.returncode == 0
    assert re.search(r"^  recommend +\S", listed.stdout, re.MULTILINE)
    unknown = onelive(tmp_path, "recomend")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("onelive: there is no command 'recomend'.\n")


def test_a_command_runs_with_its_own_arguments_from_another_folder(tmp_path):
    done = onelive(tmp_path, "prepare", "--help")
    assert done.returncode == 0, done.stderr
    assert "--source" in done.stdout
