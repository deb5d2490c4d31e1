"""The command line of every command: description, flags, a config file with overrides of any field, the workdir.

    python -m experiments.train_supervised --config=experiments/configs/x.py --workdir=/runs/x --config.model.dim=128

A config file defines `get_config()`, which returns an `onelive_jax.config.Config`; one of experiments/configs can be
named without folder and ending (--config=x). All settings are checked before any data, model or device is touched; what
is wrong is said in one sentence (exit code 2). --help shows what the command does and its own flags, --helpfull all
settings as well.
"""

import contextlib
import dataclasses
import logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from experiments.common import settings
from experiments.common.workdir import command_line, locked
from onelive_jax.config import Config
from onelive_jax.files import disk_trouble, printable

# Flags defined here count as the calling script's own.
flags.disclaim_key_flags()

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DISTRIBUTED = ("auto", "none", "tpu", "slurm", "coordinator")
# The experiments that several processes may run together; each of the others writes its workdir alone.
SEVERAL = ("experiments.train_supervised", "experiments.train_reward", "experiments.train_policy")
PRESETS = ("tiny", "0.04b", "0.08b", "0.2b", "0.8b")  # of onelive_jax/presets.py, which imports jax
TOGETHER = ("distributed", "coordinator", "processes", "process")
COMMON = ("config", "workdir", "seed", "compile_cache_dir", "verbose")
HELP = ("-h", "-help", "--help", "-helpshort", "--helpshort", "-?", "-helpfull", "--helpfull")
WIDTH = 116
# What jax reads of a SLURM step; all of it is there under srun.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
# Set by `define_config` and by `run`: what a missing --config means, the name of the command, what it does.
_command: dict[str, Any] = {"config": None, "from_workdir": False, "writes": True, "name": "", "description": ""}


def define_config(default_config: str | None = None, default_workdir: str | None = None, from_workdir: bool = False,
                  writes: bool = True, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines --config, --config.SECTION.FIELD, --workdir and --seed; call it once, where a script is imported.

    Args:
      default_config: config used if none is given; without it --config is required.
      default_workdir: workdir used if none is given; without it --workdir is required.
      from_workdir: without --config, the settings are those that --workdir was trained with (W/config.json).
      writes: whether the command writes the workdir, which it then holds alone (`workdir.locked`).
      flag_values: where the flags are defined.
    """
    _command.update(config=default_config, from_workdir=from_workdir, writes=writes)
    instead = f"{default_config} unless given" if default_config else ""
    config_flags.DEFINE_config_file(
        "config", None, "config file, or the name of one in experiments/configs"
        + (", W/config.json unless given" if from_workdir else f", {instead}" if instead else ""),
        flag_values=flag_values, lock_config=False)
    flags.DEFINE_string("workdir", default_workdir, "folder W of the run: data, examples, checkpoints, reports",
                        flag_values=flag_values)
    flags.DEFINE_string("compile_cache_dir", None, "folder that keeps compiled programs, so that the next start of the "
                        "same run need not compile again", flag_values=flag_values)
    flags.DEFINE_boolean("verbose", False, "say more: the parameters of every module", flag_values=flag_values)
    flags.DEFINE_integer("seed", None, "short for --config.seed", lower_bound=0, upper_bound=2**63 - 1,
                         flag_values=flag_values)
    flags.DEFINE_enum("distributed", "auto", DISTRIBUTED, "how the processes of one run find each other. auto: by a "
                      "coordinator that is named, else as a SLURM step of several tasks, else as a TPU slice of "
                      "several hosts on Kubernetes, else there is one process", flag_values=flag_values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 (or JAX_COORDINATOR_ADDRESS)",
                        flag_values=flag_values)
    flags.DEFINE_integer("processes", None, "number of processes (or JAX_NUM_PROCESSES)", lower_bound=1,
                         flag_values=flag_values)
    flags.DEFINE_integer("process", None, "number of this process, from 0 (or JAX_PROCESS_ID, or the pod's index "
                         "in an indexed Job)", lower_bound=0, flag_values=flag_values)


def run(main: Callable[[Config, Path], Any]) -> None:
    """Parses the command line and calls `main(config, workdir)` under absl; ends the process.

    Exit codes: 0; 2 after a sentence on stderr if the command line or a setting is wrong; 1 after a sentence on stderr
    if the project itself refused something (a ValueError, OSError or FloatingPointError of its own); 75 (SIGTERM) or
    130 (Ctrl-C) if training was asked to stop, saved its state and did. Any other exception keeps its traceback.
    """
    def joined(parsed: tuple[Config, Path]) -> Any:
        if arguments := arguments_of(flags.FLAGS, os.environ):
            check_processes(_command["name"], arguments)
        if arguments is not None:  # a command of one process need not wait for jax before it has looked at its workdir
            from experiments.common import distributed

            distributed.initialize(flags.FLAGS)
            if not distributed.is_main():
                return main(*parsed)
        if not _command["writes"]:
            return main(*parsed)
        with locked(parsed[1], command_line(_command["name"])):
            return main(*parsed)

    _run(main, joined, parse)


def run_plain(main: Callable[[], Any]) -> None:
    """As `run`, for a command without a config and a workdir: it reads its own flags. app.UsageError is exit code 2."""
    _run(main, lambda parsed: main(), parse_plain)


def read(plain: bool = False) -> None:
    """Parses the command line ahead of `run` (`plain`: of `run_plain`), for a script whose imports take seconds: called
    before them, it answers --help and refuses what is wrong at once."""
    _name_command(vars(sys.modules["__main__"]))
    parsed = (parse_plain if plain else parse)(sys.argv)
    _command["parser"] = lambda argv: parsed


def _name_command(script: Mapping[str, Any]) -> None:
    spec = script.get("__spec__")
    _command.update(name=spec.name if spec else Path(sys.argv[0]).name, description=script["__doc__"] or "")


def _run(main: Callable, call: Callable[[Any], Any], parser: Callable[[list[str]], Any]) -> None:
    _name_command(main.__globals__)

    def quietly(parsed: Any) -> Any:
        # orbax and others log every file they touch; what the project itself says stays.
        absl_logging.set_verbosity(absl_logging.ERROR)
        verbose = "verbose" in flags.FLAGS and flags.FLAGS.verbose
        absl_logging.get_absl_handler().setFormatter(_Printable("%(asctime)s %(message)s", "%H:%M:%S"))
        for package in ("onelive_jax", "data_pipelines", "experiments"):
            logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)
        try:
            with contextlib.redirect_stdout(_PrintableStream(sys.stdout)):
                return call(parsed)
        except app.UsageError as error:
            _exit(str(error), 2)
        except (ValueError, OSError, FloatingPointError) as error:
            # What the project itself raises is meant for a person; what a library raises is a bug and keeps its trace.
            own = not _from_library(error)
            if sentence := disk_trouble(error) if not own or getattr(error, "errno", None) else str(error):
                _exit(sentence, 1)
            if own:
                _exit(str(error), 1)
            raise
        except Exception as error:
            if sentence := disk_trouble(error):  # a polars.ComputeError, say
                _exit(sentence, 1)
            raise

    app.run(quietly, flags_parser=_command.get("parser", parser))


class _Printable(logging.Formatter):
    """Names of a log may hold control characters; none of them reaches a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _PrintableStream:
    """A stream whose `write` shows control characters as text (`printable`); all else is the stream's own."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text, "\n\t"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _from_library(error: BaseException) -> bool:
    """Whether an error was raised outside the project."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    file = Path(frame.f_code.co_filename)
    return not file.is_relative_to(Path(__file__).parents[2]) or _is_library(frame)


def _exit(sentence: str, code: int) -> None:
    print(printable(f"{_name()}: {sentence}"), file=sys.stderr)
    sys.exit(code)


def _name() -> str:
    return _command["name"] or Path(sys.argv[0]).name


def _is_library(frame) -> bool:
    """Whether a frame is of an installed package (a virtual environment may lie inside the checkout)."""
    return "site-packages" in Path(frame.f_code.co_filename).parts


def arguments_of(values: flags.FlagValues, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is called with; None where there is one process.

    Raises: ValueError where the flags and the environment do not say enough.
    """
    how = values.distributed
    address = values.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if how == "auto":
        slurm = all(name in environment for name in SLURM) and int(environment["SLURM_NTASKS"]) > 1
        how = "coordinator" if address else "slurm" if slurm else "tpu" if len(hosts) > 1 else "none"
    if how == "none":
        return None
    if how == "tpu":
        return {}
    if how == "slurm":
        missing = [name for name in SLURM if name not in environment]
        if missing:
            raise ValueError(f"--distributed=slurm, but {', '.join(missing)} are not set: start the command with srun")
        return {"cluster_detection_method": "slurm"}
    count = _number(values.processes, environment, "JAX_NUM_PROCESSES")
    process = _number(values.process, environment, "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX")
    for value, flag, name in ((address, "coordinator", "JAX_COORDINATOR_ADDRESS"),
                              (count, "processes", "JAX_NUM_PROCESSES"), (process, "process", "JAX_PROCESS_ID")):
        if value is None:
            raise ValueError(f"--{flag} is missing: with a coordinator a run needs --coordinator=HOST:PORT, "
                             f"--processes and --process on every process (or {name} and the like in the environment)")
    if not 0 <= process < count:
        raise ValueError(f"--process={process} is not one of {count} processes, which are numbered from 0")
    return {"coordinator_address": address, "num_processes": count, "process_id": process,
            "cluster_detection_method": "deactivate"}


def _number(flag: int | None, environment: Mapping[str, str], *names: str) -> int | None:
    if flag is not None:
        return flag
    for name in names:
        if environment.get(name):
            if not environment[name].isdigit():
                raise ValueError(f"{name}={environment[name]!r} is not a whole number")
            return int(environment[name])
    return None


def check_processes(script: str, arguments: dict[str, Any] | None) -> None:
    """Refuses to start an experiment that is for one process as one of several.

    Args:
      script: module name, e.g. "experiments.evaluate".
      arguments: `arguments_of`.

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
    _show_help(argv, flag_values)
    try:
        settings.check_overrides(argv)
        return _parse(_with_config(argv), flag_values)
    except (flags.Error, ValueError) as error:
        _exit(_sentence(str(error)), 2)


def parse_plain(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Parses a command line of own flags alone; exits as `parse`."""
    _show_help(argv, flag_values)
    try:
        if rest := flag_values(argv)[1:]:
            raise ValueError(f"unexpected argument {rest[0]!r}: flags are given as --name=value (see --help)")
    except (flags.Error, ValueError) as error:
        _exit(_sentence(str(error)), 2)


def _show_help(argv: list[str], values: flags.FlagValues) -> None:
    """Prints the help and exits, where it is asked for."""
    asked = [arg for arg in argv[1:] if arg in HELP]
    if not asked:
        return
    common = COMMON + TOGETHER if "config" in values else ()
    own = [name for name in values if "." not in name and name not in common and not _of_library(
        values.find_module_defining_flag(name))]
    parts = [_command["description"].strip()] if _command["description"] else []
    if own:
        parts.append("Flags:\n" + "\n".join(_flag_line(values[name]) for name in own))
    if common:
        shown = COMMON + (TOGETHER if _command["name"] in SEVERAL else ())
        parts.append("Flags of every run:\n" + "\n".join(_flag_line(values[name]) for name in shown) + "\n"
                     "  --config.SECTION.FIELD=VALUE overrides a setting; --helpfull lists all of them.")
        if any("full" in arg for arg in asked):
            parts.append("Settings (--config.SECTION.FIELD=VALUE), with default and allowed values:\n"
                         + settings.describe(Config()))
    print("\n\n".join(parts))
    sys.exit(0)


def _of_library(module: str | None) -> bool:
    return "site-packages" in (getattr(sys.modules.get(module), "__file__", None) or "")


def _flag_line(flag: flags.Flag) -> str:
    choices = getattr(flag.parser, "enum_values", None)
    value = f"={'|'.join(choices)}" if choices else "" if flag.boolean else f"={flag.name.upper()}"
    default = "" if flag.default in (None, False, []) else f" (default: {flag.default_as_str.strip(chr(39))})"
    text = re.sub(r"^<[^>]*>: ", "", flag.help)  # absl repeats the choices there
    return textwrap.fill(f"--{flag.name}{value}  {text}{default}", WIDTH, initial_indent="  ",
                         subsequent_indent="      ")


def _with_config(argv: list[str]) -> list[str]:
    """The command line with --config in front: the one that is given, the script's default, or that of the workdir.

    Raises: ValueError where there is none, or no such file.
    """
    given, argv = _take("config", argv)
    given = given or _command["config"]
    if not given and _command["from_workdir"]:
        workdir = Path(_take("workdir", argv)[0] or "").expanduser()
        if workdir == Path():
            raise ValueError("--workdir is missing: name the folder of a finished run (--workdir=FOLDER)")
        if not (workdir / "config.json").is_file():
            raise ValueError(f"{workdir / 'config.json'} is missing: train first (python -m experiments.run "
                             f"--workdir={workdir} --config=…), or name a --config")
        given = f"{CONFIGS / 'saved.py'}:{workdir}"
    if not given:
        raise ValueError("--config is missing: name a config file (--config=experiments/configs/NAME.py)")
    name, colon, argument = given.partition(":")
    file = Path(name)
    if not file.is_file() and (CONFIGS / f"{name}.py").is_file():
        file = CONFIGS / f"{name}.py"
    if not file.is_file():
        beside = sorted(path.stem if len(file.parts) == 1 else str(path) for path in (
            CONFIGS if len(file.parts) == 1 else file.parent).glob("[!_]*.py"))
        raise ValueError(f"--config={given}: there is no such file; there are {', '.join(beside)}")
    return [argv[0], f"--config={file}{colon}{argument}", *argv[1:]]


def _take(flag: str, argv: list[str]) -> tuple[str | None, list[str]]:
    """(the last value of a flag, None where it is not given; the command line without it)."""
    value, rest, arguments = None, argv[:1], iter(argv[1:])
    for argument in arguments:
        if match := re.fullmatch(rf"--?{flag}(?:=(.*))?", argument):
            value = match[1] if match[1] is not None else next(arguments, "")
        else:
            rest.append(argument)
    return value, rest


def _parse(argv: list[str], values: flags.FlagValues) -> tuple[Config, Path]:
    try:
        rest = values(argv)
    except AttributeError as error:
        # config.modle.dim = 3 in a config file; any other AttributeError is a bug that needs its traceback.
        if not dataclasses.is_dataclass(error.obj):
            raise
        known = settings.groups() + [name for name, _, _ in settings.fields(Config())]
        raise ValueError(f"the config file uses {type(error.obj).__name__}.{error.name}, which is not a setting; "
                         f"{settings.near(error.name, known)}") from error
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}: settings are given as --name=value (see --help)")
    config = values.config
    if not isinstance(config, Config):
        raise ValueError(f"get_config() of {values['config'].config_filename} returned a {type(config).__name__}; "
                         "it must return an onelive_jax.config.Config")
    if not values.workdir:
        raise ValueError("--workdir is missing: name the folder of the run (--workdir=FOLDER)")
    settings.tidy(config, "config", values["config"].config_filename)
    if values.compile_cache_dir:
        import jax  # a wrong command line is refused without waiting for it

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
        field = {name: f for name, f, _ in settings.fields(Config())}[match[1]]
        return f"--config.{match[1]}={match[2]} is not {settings.allowed(field)}"
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
