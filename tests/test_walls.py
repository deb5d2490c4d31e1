"""The walls of the house: who may import whom, what a bare accelerator image must be able to import, file sizes."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("onelive_jax", "data_pipelines", "experiments")
OWN = {package: sorted((ROOT / package).rglob("*.py")) for package in PACKAGES}
EVERY_FILE = [path for files in OWN.values() for path in files]

# All that the library may stand on, beside the standard library and itself.
LIBRARY = {"jax", "flax", "optax", "numpy", "chex"}
# Packages that one place alone may import.
ALONE = {
    "orbax": {"onelive_jax/training/checkpoints.py"},
    "tensorboardX": {"onelive_jax/training/metrics.py"},
    "grain": {"data_pipelines/batches/loader.py"},
    "tensorflow_datasets": {"data_pipelines/log/store.py"},
    "apache_beam": {f"data_pipelines/beam/{part}.py"
                    for part in ("files", "kuaishou", "pipeline", "steps", "views")},
    "fastapi": {"experiments/server/app.py", "experiments/server/kserve.py"},
    "pydantic": {"experiments/server/app.py", "experiments/server/kserve.py"},
    "uvicorn": {"experiments/server/start.py"},
    "redis": {"experiments/server/redis_bus.py"},
    "ray": {"experiments/server/on_ray.py"},
    "prometheus_client": {"experiments/server/metrics.py"},
    "lightgbm": {"experiments/baselines/lambdarank.py"},
    "pyarrow": {"data_pipelines/beam/files.py"},
}
# What a part of a package may import of it: itself, and the rows above its own.
LAYERS = {
    "onelive_jax": (
        ("settings",),
        ("batch", "config", "files"),
        ("presets", "sharding"),
        ("model",),
        ("tokenizer", "decoding", "evaluation"),
        ("training",),
        ("reward",),
        ("alignment",),
        ("serving",),
        ("console",),
    ),
    "data_pipelines": (
        ("tables",),
        ("readers", "log"),
        ("simulator",),
        ("batches", "pictures"),
        ("live",),
        ("prepare", "report"),
        ("beam",),
    ),
}
NEVER = {"tensorflow", "torch", "pandas", "pickle", "cloudpickle", "dill", "joblib"}
# What an accelerator image may lack. (optax itself imports absl, so that absl is held back by the check on imports.)
ABSENT = ("tensorflow", "tensorflow_datasets", "grain", "array_record", "polars", "tensorboardX", "ml_collections",
          "matplotlib", "data_pipelines", "experiments")


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(module, line, at import time?) of every import, also those inside functions."""
    tree = ast.parse(path.read_text("utf-8"))
    inside = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
              for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = [] if not node.level else list(path.relative_to(ROOT).parts[:-node.level])
            module = ".".join([*parents, *([node.module] if node.module else [])])
            # `from a import b` may import the module a.b.
            found += [(f"{module}.{alias.name}", node.lineno, id(node) not in inside) for alias in node.names]
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def breaches(files, forbidden) -> list[str]:
    """"file:line imports module" for every import of which forbidden(file, top-level package, module) is true."""
    return [f"{name(path)}:{line} imports {module}" for path in files for module, line, _ in imports(path)
            if forbidden(name(path), module.split(".")[0], module)]


def test_the_reader_of_imports_sees_all_forms(tmp_path, monkeypatch):
    """The walls below are only as good as this."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = tmp_path / "a" / "b" / "c.py"
    path.write_text("import x.y as z, w\nfrom q import r, s\nfrom . import t\nfrom ..u import v\n"
                    "def f():\n    import late\n")
    assert imports(path) == [("x.y", 1, True), ("w", 1, True), ("q.r", 2, True), ("q.s", 2, True), ("a.b.t", 3, True),
                             ("a.u.v", 4, True), ("late", 6, False)]


def test_the_library_imports_only_what_it_may():
    def forbidden(file, top, module):
        alone = file in ALONE.get(top, ())
        return not (alone or top in LIBRARY or top == "onelive_jax" or top in sys.stdlib_module_names)

    assert len(OWN["onelive_jax"]) > 5
    assert breaches(OWN["onelive_jax"], forbidden) == []


@pytest.mark.parametrize("package", LAYERS)
def test_nothing_imports_upward(package):
    floor = {part: row for row, parts in enumerate(LAYERS[package]) for part in parts}
    for path in OWN[package]:
        part = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        assert part in floor, f"{package}/{part} has no row in LAYERS"

        def forbidden(file, top, module, part=part):
            other = module.split(".")[1] if top == package else part
            return other != part and other in floor and floor[other] >= floor[part]

        assert breaches([path], forbidden) == []


def test_nothing_imports_a_command():
    """What two commands share lies in a package below experiments/."""
    commands = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}
    assert "run" in commands
    assert breaches(EVERY_FILE, lambda file, top, module: top == "experiments" and (
        module.split(".")[1] in commands)) == []


def test_every_package_says_what_lives_in_it():
    """The first paragraph of its docstring is a sentence or more."""
    signs = {name(path): (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0]
             for path in EVERY_FILE if path.name == "__init__.py"}
    assert len(signs) > 20
    assert [file for file, sign in signs.items() if not sign.endswith(".") or len(sign.split()) < 4] == []


def test_the_model_knows_no_files():
    files = [path for path in OWN["onelive_jax"] if name(path).startswith("onelive_jax/model/")]
    known = ("onelive_jax.files", "pathlib", "os", "io", "json")

    def forbidden(file, top, module):
        return any(module == wall or module.startswith(wall + ".") for wall in known)

    assert breaches(files, forbidden) == []


@pytest.mark.parametrize("package", sorted(ALONE))
def test_one_file_alone_imports(package):
    assert breaches(EVERY_FILE, lambda file, top, module: top == package and file not in ALONE[package]) == []


def test_tensorboard_is_imported_only_when_it_is_used():
    early = [f"{name(path)}:{line}" for path in OWN["onelive_jax"] for module, line, at_import in imports(path)
             if module.split(".")[0] == "tensorboardX" and at_import]
    assert early == []


def test_pipelines_do_not_import_experiments():
    assert breaches(OWN["data_pipelines"], lambda file, top, module: top == "experiments") == []


def test_nobody_imports_what_the_house_does_without():
    assert breaches(EVERY_FILE, lambda file, top, module: top in NEVER) == []


BARE = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Absent())
import onelive_jax
for module in pkgutil.walk_packages(onelive_jax.__path__, "onelive_jax."):
    importlib.import_module(module.name)
    print(module.name)
"""


def test_every_module_of_the_library_imports_on_a_bare_accelerator_image():
    done = subprocess.run([sys.executable, "-c", BARE.format(absent=ABSENT)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False)
    assert done.returncode == 0, done.stderr
    # A folder without __init__.py would not be walked, and so not be checked.
    modules = {name(path)[:-3].removesuffix("/__init__").replace("/", ".") for path in OWN["onelive_jax"]}
    assert set(done.stdout.split()) == modules - {"onelive_jax"}


def test_no_file_is_longer_than_400_lines():
    files = [*EVERY_FILE, *sorted((ROOT / "tests").rglob("*.py"))]
    lengths = {name(path): len(path.read_text("utf-8").splitlines()) for path in files}
    assert {file: length for file, length in lengths.items() if length > 400} == {}


def test_test_files_have_names_of_their_own():
    """pytest imports test modules by their bare name."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
