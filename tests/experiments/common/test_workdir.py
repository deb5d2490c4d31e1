"""A workdir: one command writes it at a time; what is damaged is named with the command that makes it anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.common.workdir import is_done, locked, mark_done, read_record

HOLD = """
import sys
from pathlib import Path
from experiments.common.workdir import locked
with locked(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_command_says_who_holds_the_workdir(tmp_path):
    with locked(tmp_path / "w", "experiments.run --seed=1"):
        with pytest.raises(ValueError, match=rf"w is in use by process {os.getpid()} on .* since 2.*: experiments.run "
                                             r"--seed=1\. Wait for it"):
            with locked(tmp_path / "w", "another"):
                pass
    with locked(tmp_path / "w", "another"):
        pass


def test_a_killed_command_leaves_its_workdir_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          cwd=Path(__file__).parents[3]) as holder:
        holder.stdout.readline()
        with pytest.raises(ValueError, match=f"process {holder.pid} on"), locked(tmp_path, "another"):
            pass
        holder.kill()
        holder.wait()
    with locked(tmp_path, "another"):
        pass


@pytest.mark.parametrize("command", [("train_tokenizer", "--config=demo", "--workdir={w}"),
                                     ("ab_test", "--control={w}", "--treatment=viewers", "--report={w}/ab_test.json")])
def test_a_command_on_a_workdir_that_is_in_use_ends_at_once(tmp_path, command):
    (tmp_path / "config.json").write_text("{}")
    with locked(tmp_path, "experiments.run --seed=1"):
        name, *arguments = (part.format(w=tmp_path) for part in command)
        refused = subprocess.run([sys.executable, "-m", f"experiments.{name}", *arguments], capture_output=True,
                                 text=True, cwd=Path(__file__).parents[3], check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"experiments.{name}: {tmp_path} is in use by process {os.getpid()} on ")
    assert refused.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


def test_a_workdir_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/w cannot be made or written: Not a directory"), locked(
            tmp_path / "file" / "w", "train"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"chosen_step": "six"}'])
def test_a_damaged_record_is_named_with_the_command_that_makes_its_stage_anew(tmp_path, text):
    (tmp_path / "policy_b.json").write_text(text)
    with pytest.raises(ValueError, match=rf"policy_b.json is damaged .*rm -r {tmp_path}/policy_b && python -m "
                                         rf"experiments.train_policy --workdir={tmp_path} --out=b"):
        read_record(tmp_path / "policy_b.json", tmp_path / "policy_b", "chosen_step")


def test_a_damaged_mark_is_named(tmp_path):
    mark_done(tmp_path / "supervised", {"seed": 0})
    assert is_done(tmp_path / "supervised", {"seed": 0})
    (tmp_path / "supervised" / "done.json").write_text('{"seed": 0')
    with pytest.raises(ValueError, match="done.json is damaged .*experiments.train_supervised --workdir="):
        is_done(tmp_path / "supervised", {"seed": 0})
