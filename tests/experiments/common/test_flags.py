"""The command line: overrides of every type, and one sentence with exit code 2 for whatever is wrong."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags as absl_flags

from experiments.common import flags, settings
from onelive_jax import presets
from onelive_jax.config import Config

ROOT = Path(__file__).resolve().parents[3]

CONFIG = """
from onelive_jax.config import Config

def get_config():
    config = Config(name="small")
    config.data.source = "simulated"
    {line}
    return config
"""

COMMAND = """
import sys
from experiments.common import flags

flags.define_config()

def main(config, workdir):
    print(config.name, config.model.dim, workdir, "jax" in sys.modules, "\\x1b[2J")

if __name__ == "__main__":
    flags.run(main)
"""


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parses a command line with flag definitions of its own, as a fresh process would."""

    def parse(*args: str, line: str = "", file: str = "small.py", workdir: bool = True):
        (tmp_path / "small.py").write_text(CONFIG.format(line=line))
        argv = ["command", f"--config={tmp_path / file}", *([f"--workdir={tmp_path}"] if workdir else []), *args]
        monkeypatch.setattr(sys, "argv", argv)
        values = absl_flags.FlagValues()
        flags.define_config(flag_values=values)
        return flags.parse(argv, values)

    return parse


@pytest.fixture
def sentence(parse, capsys):
    """The one line on stderr with which a wrong command line stops."""

    def sentence(*args: str, **kwargs) -> str:
        with pytest.raises(SystemExit) as stop:
            parse(*args, **kwargs)
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        return captured.err

    return sentence


def test_the_config_file_is_read(parse, tmp_path):
    config, workdir = parse()
    assert (config.name, config.data.source, workdir) == ("small", "simulated", tmp_path)
    assert config.model == Config().model


@pytest.mark.parametrize("args, section, field, value", [
    (["--config.model.dim=32"], "model", "dim", 32),
    (["--config.model.dim", "32"], "model", "dim", 32),
    (["--config.training.learning_rate=0.5"], "training", "learning_rate", 0.5),
    (["--config.data.valid_hours=3"], "data", "valid_hours", 3.0),
    (["--config.model.mtp=false"], "model", "mtp", False),
    (["--noconfig.model.mtp"], "model", "mtp", False),
    (["--config.model.loss_weights=1,0.5,0"], "model", "loss_weights", (1.0, 0.5, 0.0)),
    (["--config.model.loss_weights=(2.0, 1, 1)"], "model", "loss_weights", (2.0, 1.0, 1.0)),
    (["--config.data.history_unit=views"], "data", "history_unit", "views"),
    (["--config.model.dim=32", "--config.model.dim=48"], "model", "dim", 48),
])
def test_an_override_of_each_type(parse, args, section, field, value):
    config, _ = parse(*args)
    found = getattr(getattr(config, section), field)
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert all(type(v) is float for v in found)


def test_seed_is_short_for_config_seed(parse):
    assert parse("--seed=7")[0].seed == 7
    assert parse("--config.seed=8")[0].seed == 8
    assert parse()[0].seed == 0


@pytest.mark.parametrize("args, words", [
    (["--config.model.dmi=3"], ["--config.model.dmi", "did you mean", "config.model.dim"]),
    (["--config.modle.num_layers=3"], ["--config.modle.num_layers", "config.model.num_layers"]),
    (["--config.num_layers=3"], ["--config.num_layers", "config.model.num_layers"]),
    (["--config.zzz=3"], ["--config.zzz", "--helpfull"]),
    (["--noconfig.model.mpt"], ["config.model.mpt", "config.model.mtp"]),
    (["--config.model=3"], ["--config.model ", "group", "--config.model.dim"]),
    (["--config.model.dim=0"], ["config.model.dim=0", "2", "65536"]),
    (["--config.model.dim=wide"], ["--config.model.dim=wide", "whole number", "65536"]),
    (["--config.model.dim=3.5"], ["--config.model.dim=3.5", "whole number"]),
    (["--config.model.dim"], ["--config.model.dim", "no value"]),
    (["--config.model.mtp=perhaps"], ["--config.model.mtp=perhaps", "true or false"]),
    (["--config.model.loss_weights=a,b"], ["config.model.loss_weights", "numbers"]),
    (["--config.model.loss_weights=1,1"], ["config.model.loss_weights", "config.tokenizer.levels"]),
    (["--config.training.learning_rate=nan"], ["config.training.learning_rate"]),
    (["--config.data.valid_hours=inf"], ["config.data.valid_hours", "finite"]),
    (["--config.data.source=twich"], ["config.data.source", "'twitch'"]),
    (["--seed=-1"], ["--seed=-1"]),
    (["--seed=9223372036854775808"], ["9223372036854775808", "0"]),
    (["--config.training.batch_size=1000000000000"], ["batch_size", "1048576"]),
    (["--wrkdir=x"], ["wrkdir", "workdir"]),
    (["twitch.csv"], ["twitch.csv", "--name=value"]),
])
def test_a_wrong_flag_stops_with_its_name(sentence, args, words):
    message = sentence(*args)
    for word in words:
        assert word in message


@pytest.mark.parametrize("line, words", [
    ("config.model.dmi = 3", ["small.py", "config.model.dmi", "config.model.dim"]),
    ("config.modle.dim = 3", ["modle", "config.model"]),
    ("config.model.dim = '64'", ["config.model.dim='64'", "whole number"]),
    ("config.model.dim = True", ["config.model.dim=True", "whole number"]),
    ("config.model.mtp = 1", ["config.model.mtp=1", "true or false"]),
    ("config.model = 3", ["config.model", "group"]),
    ("config = Config(nmae='x')", ["small.py", "nmae"]),
    ("config = {}", ["small.py", "dict", "onelive_jax.config.Config"]),
])
def test_a_wrong_config_file_stops_with_the_field(sentence, line, words):
    message = sentence(line=line)
    for word in words:
        assert word in message


def test_a_missing_file_names_the_files_there_are(sentence):
    message = sentence(file="smal.py")
    assert "smal.py" in message
    assert "small.py" in message


def test_a_missing_workdir_is_asked_for(sentence):
    assert "--workdir=FOLDER" in sentence(workdir=False)


def test_the_full_help_lists_every_field_with_doc_default_and_range(parse, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--helpfull")
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name, field, _ in settings.fields(Config()):
        line = next(line for line in lines if line.startswith(f"  --config.{name}="))
        assert field.metadata["doc"] in line
    assert "  --config.model.dim=64  [a whole number 2 … 65536]  model width D" in lines
    assert "  --config.model.loss_weights=1.0,1.0,1.0  [numbers]  w0, w1, w2 of L_main, L_1, L_2" in lines
    assert "  --config.data.history_unit=authors  [authors | views]  " + next(
        field.metadata["doc"] for name, field, _ in settings.fields(Config()) if name == "data.history_unit") in lines


def test_a_real_process_without_traceback_and_without_jax(tmp_path):
    (tmp_path / "small.py").write_text(CONFIG.format(line=""))
    (tmp_path / "command.py").write_text(COMMAND)
    start = [sys.executable, str(tmp_path / "command.py"), f"--config={tmp_path}/small.py", "--workdir=w"]

    def run(*args):
        return subprocess.run([*start, *args], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                              capture_output=True, text=True, check=False)

    good = run("--config.model.dim=32")
    assert (good.returncode, good.stdout) == (0, "small 32 w False \\x1b[2J\n"), good.stderr
    bad = run("--config.model.dmi=32")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("command.py: --config.model.dmi is not a setting")
    assert bad.stderr.count("\n") == 1
    assert run("--help").returncode == 0


def commands() -> list[str]:
    """Every command of experiments/: a module that is made to be run."""
    files = sorted((ROOT / "experiments").rglob("*.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files
            if 'if __name__ == "__main__":' in file.read_text("utf-8")]


def test_every_command_describes_itself_with_an_example():
    assert {"experiments.run", "experiments.plan", "experiments.studies.alignment"} < set(commands())
    for command in commands():
        source = (ROOT / (command.replace(".", "/") + ".py")).read_text("utf-8")
        assert f"python -m {command}" in ast.get_docstring(ast.parse(source)), command


# What a command may import before it has read its command line: of our own modules, those that do not import jax.
LIGHT = {"experiments.common", "experiments.common.workdir", "onelive_jax.config", "onelive_jax.files"}
SLOW = ("jax", "flax", "optax", "orbax", "polars", "numba", "scipy", "matplotlib", "experiments", "data_pipelines",
        "onelive_jax")


@pytest.mark.parametrize("command", commands())
def test_help_and_wrong_flags_do_not_wait_for_imports(command):
    """Imports that take seconds are within functions, or behind `flags.read()`."""
    body = ast.parse((ROOT / (command.replace(".", "/") + ".py")).read_text("utf-8")).body
    read = next((i for i, node in enumerate(body) if "flags.read(" in ast.unparse(node)), len(body))
    modules = [name for node in body[:read] for name in ([node.module] if isinstance(node, ast.ImportFrom) else [
        alias.name for alias in node.names] if isinstance(node, ast.Import) else [])]
    assert not [name for name in modules if name.split(".")[0] in SLOW and name not in LIGHT]


# One of a kind: with a config, with that of a workdir, without; of studies one, whose imports take seconds.
@pytest.mark.parametrize("command", ["run", "recommend", "ab_test", "plan", "benchmark", "ablate",
                                     "studies.kill_and_resume"])
def test_help_fits_on_a_screen(command, tmp_path):
    """Description, own flags and an example, exit code 0, without the 150 settings; a mistyped flag is one line."""
    def run(*args):
        return subprocess.run([sys.executable, "-m", f"experiments.{command}", *args], cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)

    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m experiments.{command}" in done.stdout
    assert re.search(r"^  --\w+=", done.stdout, re.MULTILINE)
    assert len(done.stdout.splitlines()) < 60
    assert "--config.model.dim" not in done.stdout
    wrong = run("--wrkdir=W")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith(f"experiments.{command}: ")
    assert wrong.stderr.count("\n") == 1


def test_a_config_can_be_named_from_anywhere(parse, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    values = absl_flags.FlagValues()
    flags.define_config(flag_values=values)
    config, _ = flags.parse(["command", "--config=demo", f"--workdir={tmp_path}"], values)
    assert (config.name, config.data.source) == ("demo", "simulated")


def test_compiled_programs_are_kept_where_the_flag_says(parse, tmp_path):
    kept = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        parse(f"--compile_cache_dir={tmp_path / 'programs'}")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", kept[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", kept[1])


def test_a_mistyped_folder_is_told_before_anything_is_loaded(tmp_path):
    for command, *args in (("ab_test", "--control=viewers", "--treatment=W/polcy"),
                           ("evaluate", "--workdir=W"), ("recommend", "--workdir=W", "--user=1"),
                           ("benchmark", "--what=compile", "--preset=tiny"), ("plan", "--what=trian")):
        done = subprocess.run([sys.executable, "-X", "importtime", "-m", f"experiments.{command}", *args], cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
        *imports, sentence = done.stderr.splitlines()
        assert done.returncode in (1, 2)
        assert sentence.startswith(f"experiments.{command}: ")
        assert not any(re.search(r"\| +jax$", line) for line in imports)  # which alone takes a second


def test_presets_on_the_command_line_are_those_of_the_library():
    assert flags.PRESETS == tuple(presets.PRESETS)


def test_ctrl_c_outside_training_is_one_line():
    done = subprocess.run([sys.executable, "-c", "import experiments; raise KeyboardInterrupt"], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
