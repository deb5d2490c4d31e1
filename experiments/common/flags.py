"""The command line of every experiment: a config file, overrides of any field, the workdir, the seed.

    python -m experiments.train_supervised --config=experiments/configs/x.py --workdir=/runs/x --config.model.dim=128

A config file defines `get_config()`, which returns an `onelive_jax.config.Config`. All settings are checked before any
data, model or device is touched; what is wrong is told in one sentence (exit code 2).
"""

import dataclasses
import difflib
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from onelive_jax.config import Config

# Flags defined here count as the calling script's own, so that its help shows them.
flags.disclaim_key_flags()

DISTRIBUTED = ("auto", "none", "tpu", "slurm", "coordinator")
# The experiments that several processes may run together; each of the others writes its workdir alone.
SEVERAL = ("experiments.train_supervised", "experiments.train_reward", "experiments.train_policy")
HELP = ("-h", "-help", "--help", "-helpfull", "--helpfull", "-helpshort", "--helpshort", "-?")


def define_config(default_config: str | None = None, default_workdir: str | None = None, from_workdir: bool = False,
                  flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines --config, --config.SECTION.FIELD, --workdir and --seed; call it once, where a script is imported.

    Args:
      default_config: config file used if none is given; without it --config is required.
      default_workdir: workdir used if none is given; without it --workdir is required.
      from_workdir: without --config, the settings are those that --workdir was trained with (W/config.json).
      flag_values: where the flags are defined.
    """
    _defaults.update(config=default_config, from_workdir=from_workdir)
    config_flags.DEFINE_config_file("config", None, "config file, a Python file with a get_config()",
                                    flag_values=flag_values, lock_config=False)
    flags.DEFINE_string("workdir", default_workdir, "folder of the run: data, examples, checkpoints, reports",
                        flag_values=flag_values)
    flags.DEFINE_string("compile_cache_dir", None, "folder that keeps compiled programs, so that the next start of the "
                        "same run need not compile again", flag_values=flag_values)
    flags.DEFINE_integer("seed", None, "short for --config.seed", lower_bound=0, flag_values=flag_values)
    flags.DEFINE_enum("distributed", "auto", DISTRIBUTED, "how the processes of one run find each other. auto: by a "
                      "coordinator that is named, else as a SLURM step of several tasks, else as a TPU slice of "
                      "several hosts on Kubernetes, else there is one process", flag_values=flag_values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 (or JAX_COORDINATOR_ADDRESS)",
                        flag_values=flag_values)
    flags.DEFINE_integer("processes", None, "number of processes (or JAX_NUM_PROCESSES)", lower_bound=1,
                         flag_values=flag_values)
    flags.DEFINE_integer("process", None, "number of this process, from 0 (or JAX_PROCESS_ID, or the pod's index "
                         "in an indexed Job)", lower_bound=0, flag_values=flag_values)


def _is_library(frame) -> bool:
    """Whether a frame is of an installed package (a virtual environment may lie inside the checkout)."""
    return "site-packages" in Path(frame.f_code.co_filename).parts


# Set by define_config: what a missing --config means.
_defaults: dict[str, Any] = {"config": None, "from_workdir": False}


def _with_default_config(argv: list[str]) -> list[str]:
    """Adds the script's default --config, or --config=<the workdir's config.json>, where no --config is given."""
    if any(re.match(r"--?config(=|$)", arg) for arg in argv[1:]):
        return argv
    if _defaults["config"]:
        return [argv[0], f"--config={_defaults['config']}", *argv[1:]]
    for i, arg in enumerate(argv if _defaults["from_workdir"] else []):
        match = re.match(r"--?workdir(?:=(.*))?$", arg)
        if match:
            workdir = match[1] if match[1] is not None else argv[i + 1] if i + 1 < len(argv) else ""
            if not (Path(workdir) / "config.json").is_file():
                raise FileNotFoundError(f"{Path(workdir) / 'config.json'} is missing: train first (python -m "
                                        f"experiments.run --workdir={workdir} --config=…), or name a --config")
            saved = Path(__file__).parent / "configs" / "saved.py"
            return [argv[0], f"--config={saved}:{workdir}", *argv[1:]]
    return argv


def run(main: Callable[[Config, Path], Any]) -> None:
    """Parses the command line and calls `main(config, workdir)` under absl; ends the process.

    Exit codes: 0; 2 after a sentence on stderr if the command line or a setting is wrong; 1 after a sentence on stderr
    if the project itself refused something (a ValueError, OSError or FloatingPointError of its own); 75 (SIGTERM) or
    130 (Ctrl-C) if training was asked to stop, saved its state and did. Any other exception keeps its traceback.
    """
    def quietly(parsed):
        # orbax and others tell absl's logger of every file they touch; what the project says of itself stays.
        absl_logging.set_verbosity(absl_logging.ERROR)
        absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        for package in ("onelive_jax", "data_pipelines", "experiments"):
            logging.getLogger(package).setLevel(logging.INFO)
        try:
            if "jax" in sys.modules:  # a command that computes nothing is one process, and need not wait for jax
                from experiments.common import distributed

                check_processes(_script(), distributed.arguments_of(flags.FLAGS, os.environ))
                distributed.initialize(flags.FLAGS)
            return main(*parsed)
        except (ValueError, OSError, FloatingPointError) as error:
            # What the project itself raises is meant for a person; what a library raises is a bug and keeps its trace.
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            if not Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1]) or _is_library(frame):
                raise
            print(f"{_script()}: {error}", file=sys.stderr)
            sys.exit(1)

    app.run(quietly, flags_parser=parse)


def check_processes(script: str, arguments: dict[str, Any] | None) -> None:
    """Refuses to start an experiment that is for one process as one of several.

    Args:
      script: module name, e.g. "experiments.evaluate".
      arguments: `distributed.arguments_of`.

    Raises: ValueError with what to do.
    """
    if arguments is None or arguments.get("num_processes") == 1:
        return
    if script.startswith("experiments.") and script not in SEVERAL:
        raise ValueError("this experiment is for one process, but its flags or its environment say that there are "
                         "several. Start it once, outside srun or the pod's launcher (or with --distributed=none); "
                         f"for several processes there are {', '.join(SEVERAL)}")


def parse(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> tuple[Config, Path]:
    """The validated config and the workdir of a command line (program name first); exits 0 on --help, 2 if wrong."""
    if any(arg in HELP for arg in argv[1:]):
        print(f"usage: python -m {_script()} --config=FILE --workdir=FOLDER [--config.SECTION.FIELD=VALUE …]")
        print(flag_values.main_module_help())
        print("\nFields of a config (--config.SECTION.FIELD=VALUE), with default and allowed values:\n")
        print(describe(Config()))
        sys.exit(0)
    try:
        return _parse(_with_default_config(argv), flag_values)
    except (flags.Error, ValueError, FileNotFoundError) as error:
        print(f"{_script()}: {_sentence(str(error))}", file=sys.stderr)
        sys.exit(2)


def _script() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name


def _parse(argv: list[str], values: flags.FlagValues) -> tuple[Config, Path]:
    _check_overrides(argv)
    _check_file(argv)
    try:
        rest = values(argv)
    except AttributeError as error:
        # config.modle.dim = 3 in a config file; any other AttributeError is a bug that needs its traceback.
        if not dataclasses.is_dataclass(error.obj):
            raise
        raise ValueError(f"the config file uses {type(error.obj).__name__}.{error.name}, which is not a setting; "
                         f"{_near(error.name, _groups() + [name for name, _, _ in fields(Config())])}") from error
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}: settings are given as --name=value (see --help)")
    config = values.config
    if not isinstance(config, Config):
        raise ValueError(f"get_config() of {values['config'].config_filename} returned a {type(config).__name__}; "
                         "it must return an onelive_jax.config.Config")
    if not values.workdir:
        raise ValueError("--workdir is missing: name the folder of the run (--workdir=FOLDER)")
    _tidy(config, "config", values["config"].config_filename)
    if values.compile_cache_dir:
        import jax  # a wrong command line is told without waiting for it

        jax.config.update("jax_compilation_cache_dir", str(Path(values.compile_cache_dir).expanduser().resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    if values.seed is not None:
        config.seed = values.seed
    if config.data.path:  # one log has one name, wherever a command is started
        config.data.path = str(Path(config.data.path).expanduser().resolve())
    return config.validate(), Path(values.workdir).expanduser()


def _sentence(message: str) -> str:
    """absl's and ml_collections' messages in our words; any other message as it is."""
    match = re.match(r"flag --config\.([^=]*)=(.*?): ", message)
    if match:
        field = {name: f for name, f, _ in fields(Config())}[match[1]]
        return f"--config.{match[1]}={match[2]} is not {_allowed(field)}"
    match = re.match(r"flag --(\w+)=None: .* must have a value", message)
    if match:
        return f"--{match[1]} is missing (see --help)"
    match = re.match(r"Missing value for flag --config\.(.*)", message)
    if match:
        return f"--config.{match[1]} has no value: write --config.{match[1]}=VALUE"
    if "Error whilst parsing config file" in message:
        # A traceback: its first line names the file, its last one the error.
        return f"{message.splitlines()[0]} {message.strip().splitlines()[-1]}"
    return message


def _groups() -> list[str]:
    return [f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default_factory)]


def _check_overrides(argv: list[str]) -> None:
    """Raises ValueError for the first --config.a.b that is not a field, with what it may have been meant to be."""
    known = {name: f for name, f, _ in fields(Config())}
    for arg in argv[1:]:
        match = re.match(r"--?(no)?config\.([^=]*)", arg)
        if not match or match[2] in known:
            continue
        name = match[2]
        inside = [field for field in known if field.startswith(name + ".")]
        if inside:
            raise ValueError(f"--config.{name} is a group of settings; set one of them, e.g. --config.{inside[0]}=…")
        raise ValueError(f"--config.{name} is not a setting; {_near(name, list(known))}")


def _near(name: str, known: list[str]) -> str:
    """The known fields that `name` resembles: as a whole, or in its last part (a field put into the wrong group)."""
    last = name.rsplit(".", 1)[-1]
    near = [field for field in known if field.rsplit(".", 1)[-1] == last]
    near += difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    parts = difflib.get_close_matches(last, [field.rsplit(".", 1)[-1] for field in known], n=2, cutoff=0.75)
    near += [field for field in known if field.rsplit(".", 1)[-1] in parts]
    near = list(dict.fromkeys(near))[:4]
    if near:
        return "did you mean " + " or ".join(f"config.{field}" for field in near) + "?"
    return "--help lists all of them"


def _check_file(argv: list[str]) -> None:
    """Raises ValueError if the config file that will be loaded (the last --config) is missing."""
    path = None
    for i, arg in enumerate(argv):
        if re.fullmatch(r"--?config", arg):
            path = argv[i + 1] if i + 1 < len(argv) else None
        elif re.match(r"--?config=", arg):
            path = arg.split("=", 1)[1]
    if not path:
        raise ValueError("--config is missing: name a config file (--config=experiments/configs/NAME.py)")
    file = path.split(":", 1)[0]
    if not os.path.isfile(file):
        beside = sorted(str(p) for p in Path(file).parent.glob("*.py") if not p.name.startswith("_"))
        there = f"; there are {', '.join(beside)}" if beside else ""
        raise ValueError(f"--config={path}: there is no such file{there}")


def _tidy(node: Any, path: str, file: str) -> None:
    """Brings values to their declared types, and finds fields that a config file made up.

    Assigning to a misspelt attribute of a dataclass is legal Python, and would leave the default in force.
    """
    names = [f.name for f in dataclasses.fields(node)]
    for name in vars(node):
        if name not in names:
            prefix = path.removeprefix("config").lstrip(".")
            full = f"{prefix}.{name}" if prefix else name
            raise ValueError(f"{file} sets {path}.{name}, which is not a setting; "
                             f"{_near(full, [field for field, _, _ in fields(Config())])}")
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        if dataclasses.is_dataclass(f.default_factory) and not isinstance(value, f.default_factory):
            raise ValueError(f"{path}.{f.name} is a group of settings, not {value!r}")
        if dataclasses.is_dataclass(value):
            _tidy(value, f"{path}.{f.name}", file)
        else:
            setattr(node, f.name, _typed(value, f, f"{path}.{f.name}"))


def _typed(value: Any, f: dataclasses.Field, name: str) -> Any:
    """`value` as the field's type: a whole number may stand for a float, a list for a tuple, nothing else."""
    default = f.default
    if isinstance(default, tuple) and isinstance(default[0], str):
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{name}={value!r} must be names separated by commas, e.g. --{name}={','.join(default)}")
        return tuple(value)
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not all(_is_number(v) for v in value):
            raise ValueError(f"{name}={value!r} must be numbers separated by commas, e.g. --{name}=1.0,0.5,0.5")
        return tuple(float(v) for v in value)
    if isinstance(default, float) and _is_number(value):
        if not math.isfinite(value):
            raise ValueError(f"{name}={value} must be a finite number")
        return float(value)
    if type(value) is not type(default):
        raise ValueError(f"{name}={value!r} must be {_TYPES[type(default)]}")
    return value


_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "numbers"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def fields(config: Any, prefix: str = "") -> list[tuple[str, dataclasses.Field, Any]]:
    """Every setting of a config as (dotted name, dataclass field, value), groups opened, in order."""
    result = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            result += fields(value, f"{prefix}{f.name}.")
        else:
            result.append((prefix + f.name, f, value))
    return result


def describe(config: Config) -> str:
    """One line a setting: name, default, allowed values, meaning."""
    lines, group = [], ""
    for name, f, value in fields(config):
        section = name.rpartition(".")[0]
        if section != group:
            group = section
            lines.append(f"\n{section}: {(type(getattr(config, section)).__doc__ or '').strip().splitlines()[0]}")
        lines.append(f"  --config.{name}={_shown(value)}  [{_allowed(f)}]  {f.metadata['doc']}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _allowed(f: dataclasses.Field) -> str:
    meta = f.metadata
    if meta["choices"]:
        return " | ".join(map(str, meta["choices"]))
    if meta["low"] is not None or meta["high"] is not None:
        low = "-inf" if meta["low"] is None else meta["low"]
        return f"{_TYPES[type(f.default)]} {low} … {'inf' if meta['high'] is None else meta['high']}"
    return _TYPES[type(f.default)]
