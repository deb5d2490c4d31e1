"""The worked example of docs/data.md is run as it stands there."""

import re
from pathlib import Path

import polars as pl

from data_pipelines import tables

DOC = Path(__file__).parents[2] / "docs" / "data.md"


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", DOC.read_text(), re.DOTALL)[1]


def test_the_example_makes_tables_of_five_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "views.csv").write_text(block("csv"))
    exec(compile(block("python"), str(DOC), "exec"), {})  # the project's own text, not input
    made = tables.load(tmp_path / "my_tables")
    assert made.users["source_id"].to_list() == ["ann", "bob"]
    assert made.authors["source_id"].to_list() == ["kim", "lee"]
    assert made.interactions.select("user_id", "room_id", "author_id").rows() == [(0, 0, 1), (0, 1, 0), (1, 0, 1)]
    first = made.rooms.row(0, named=True)
    assert (first["start_ms"], first["end_ms"]) == (1746403200000, 1746403500000 + 2400000)
    assert made.rooms.schema["title_embedding"] == pl.Int32
