"""The worked example of docs/data.md is run as it stands there, in both ways, and both give the same log."""

import re
import shlex
import sys
from pathlib import Path

import polars as pl
import pytest

from data_pipelines import prepare, tables

DOC = Path(__file__).parents[2] / "docs" / "data.md"


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", DOC.read_text(), re.DOTALL)[1]


def test_the_command_and_the_recipe_make_the_same_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "views.csv").write_text(block("csv"))
    exec(compile(block("python"), str(DOC), "exec"), {})  # the project's own text, not input
    recipe = tables.load(tmp_path / "my_tables")
    (tmp_path / "my_tables").rename("recipe")
    for command in block("sh").splitlines()[:2]:
        monkeypatch.setattr(sys, "argv", shlex.split(command)[2:])
        prepare.main()
        assert (tmp_path / "my_tables").exists() == ("--dry_run" not in command)
    made = tables.load(tmp_path / "my_tables")
    for name in ("interactions", "users", "authors"):
        assert getattr(made, name).equals(getattr(recipe, name)), name
    assert made.rooms.equals(recipe.rooms.with_columns(source_id=pl.Series(["r1", "r2"])).select(made.rooms.columns))
    assert made.users["source_id"].to_list() == ["ann", "bob"]
    first = made.rooms.row(0, named=True)
    assert (first["start_ms"], first["end_ms"]) == (1746403200000, 1746403500000 + 2400000)
    said = capsys.readouterr().out
    assert "from Mon 5 May 2025 08:00 UTC+8 to Mon 5 May 2025 10:00 UTC+8, 0.1 days; median watch 20.0 min" in said
    assert "dry run: nothing is written" in said


def test_the_recipe_ends_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ("", "user,room\na,b\n", block("csv").replace("2025-05-05 08:05:00", "soon")):
        (tmp_path / "views.csv").write_text(content)
        with pytest.raises(SystemExit, match=r"^error: "):
            exec(compile(block("python"), str(DOC), "exec"), {})
