"""The console script: `onelive COMMAND …` runs a command of the project from any folder.

    onelive                                   what there is
    onelive run --config=twitch --workdir=W   python -m experiments.run --config=… --workdir=W
    onelive prepare --source=log …            python -m data_pipelines.prepare --source=log …
"""

import ast
import os
import runpy
import sys
from pathlib import Path

PACKAGES = ("experiments", "data_pipelines")


def home() -> Path:
    """The folder that holds the packages of the commands: an installation's own, else the checkout."""
    here = Path(__file__).resolve().parent
    return here / "commands" if (here / "commands").is_dir() else here.parent


def commands(folder: Path) -> dict[str, str]:
    """Name of every command → its module. A command is a module that is made to be run (`__main__`)."""
    found = {}
    for package in PACKAGES:
        for file in sorted((folder / package).rglob("*.py")):
            name = ".".join(file.relative_to(folder).with_suffix("").parts)
            if file.name == "__main__.py":
                name = name.removesuffix(".__main__")
            elif 'if __name__ == "__main__":' not in file.read_text("utf-8"):
                continue
            found.setdefault(name.partition(".")[2], name)
    return found


def main() -> None:
    """Runs the command that the first argument names, with the other arguments. Exits with 2 where there is none."""
    folder = home()
    known = commands(folder)
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    if asked not in known:
        out = sys.stdout if asked in ("", "-h", "--help") else sys.stderr
        if out is sys.stderr:
            print(f"onelive: there is no command {asked!r}.", file=out)
        print("usage: onelive COMMAND [--help] …\n", file=out)
        for name, module in known.items():
            file = folder.joinpath(*module.split("."))
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            doc = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
            print(f"  {name:28}{doc.partition(chr(10))[0]}", file=out)
        sys.exit(0 if out is sys.stdout else 2)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # commands start commands
    sys.path.insert(0, str(folder))
    sys.argv = [f"onelive {asked}", *sys.argv[2:]]
    runpy.run_module(known[asked], run_name="__main__", alter_sys=False)
