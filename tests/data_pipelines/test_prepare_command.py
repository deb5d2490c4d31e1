import sys

import polars as pl
import pytest

from data_pipelines import prepare as prepare_lib
from data_pipelines import tables as tables_lib
from data_pipelines.readers.kuailive import read_kuailive
from data_pipelines.readers.rows import Options
from data_pipelines.simulator.formats import write_kuailive, write_kuailive_m3
from tests.data_pipelines.logs_in_form import simulated, write


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["prepare", *(str(flag) for flag in flags)])
    prepare_lib.main()


def test_every_source_becomes_tables(tmp_path, monkeypatch, capsys):
    write_kuailive(simulated(), tmp_path / "kuailive")
    write_kuailive_m3(simulated(), tmp_path / "kuailive_m3")
    (tmp_path / "twitch").mkdir()
    (tmp_path / "twitch" / "log.csv").write_text("1,7,bob,0,1\n1,7,bob,0,1\n")
    out = tmp_path / "to"
    for source in ("kuailive", "kuailive_m3", "twitch"):
        run(monkeypatch, f"--source={source}", f"--data_dir={tmp_path / source}", f"--out_dir={out / source}")
    run(monkeypatch, "--source=simulated", "--users=20", "--authors=10", "--days=3", f"--out_dir={out / 'simulated'}")
    printed = capsys.readouterr().out
    for said in ("2 rows read, 1 kept", "dropped 1: repeated row", "merged", "titles: 7 rows", "segments: ", "MB"):
        assert said in printed
    views = simulated().interactions.filter("click").select("user_id", "start_ms")
    for source in ("kuailive", "kuailive_m3"):
        tables = tables_lib.load(out / source)
        assert tables.interactions.filter("click").select("user_id", "start_ms").equals(views)
    assert len(tables_lib.load(out / "twitch").interactions) == 1
    assert len(tables_lib.load(out / "simulated").users) == 20


def test_limits_reach_the_readers(tmp_path):
    write_kuailive(simulated(), tmp_path / "log")
    three = Options(limit_users=3)
    prepare_lib.prepare(tmp_path / "out", "kuailive", tmp_path / "log", three)
    assert tables_lib.load(tmp_path / "out").interactions.equals(read_kuailive(tmp_path / "log", three).interactions)
    with pytest.raises(ValueError, match="limit_users=3 is for log, twitch, kuailive, kuailive_m3"):
        prepare_lib.prepare(tmp_path / "x", "simulated", options=three)
    with pytest.raises(ValueError, match="source='other' is not one of log, "):
        prepare_lib.read_source("other", tmp_path)


def test_a_whole_folder_is_kept_and_a_foreign_one_refused(tmp_path):
    log, out = write(tmp_path / "log"), tmp_path / "out"
    prepare_lib.prepare(out, "kuailive", log)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = prepare_lib.prepare(out, "kuailive", log)
    assert "already made" in again[0]
    assert "3 rows read, 3 kept" in again[1]
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(ValueError, match=r"'limit_users': None.* then, .*'limit_users': 1.* now"):
        prepare_lib.prepare(out, "kuailive", log, Options(limit_users=1))
    write(log, like=["user_id,live_id,streamer_id,timestamp", "10,70,5,1600"])
    with pytest.raises(ValueError, match=r"made from something else \(bytes: "):
        prepare_lib.prepare(out, "kuailive", log)
    with pytest.raises(ValueError, match=r"holds other files \(click.csv, like.csv, room.csv"):
        prepare_lib.prepare(log, "kuailive", log)
    assert sorted(path.name for path in log.iterdir()) == ["click.csv", "like.csv", "room.csv"]
    with pytest.raises(ValueError, match="is a file"):
        prepare_lib.prepare(log / "click.csv", "kuailive", log)


def test_an_interrupted_folder_is_not_whole_and_is_made_again(tmp_path, monkeypatch):
    log, out, writes = write(tmp_path / "log"), tmp_path / "out", []
    real = pl.DataFrame.write_parquet

    def interrupted(frame, path, *args, **kwargs):
        writes.append(path)
        if len(writes) == 3:
            raise KeyboardInterrupt
        return real(frame, path, *args, **kwargs)

    monkeypatch.setattr(pl.DataFrame, "write_parquet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_lib.prepare(out, "kuailive", log)
    with pytest.raises(FileNotFoundError, match="not a complete folder"):
        tables_lib.load(out)
    prepare_lib.prepare(out, "kuailive", log)
    assert len(tables_lib.load(out).interactions) == 3


def test_bad_use_of_the_command(tmp_path, monkeypatch, capsys):
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.csv", "b.csv"):
        (two / name).write_text("1,7,bob,0,1\n")
    out = f"--out_dir={tmp_path / 'out'}"
    for flags, said in ((("--source=kuailive",), "--data_dir is needed"),
                        (("--source=simulated", f"--data_dir={two}"), "--data_dir has no meaning"),
                        (("--source=log", f"--data_dir={two}", "--columns=user=a,fan=b"), "'fan=b' is not FIELD"),
                        (("--source=kuailive", f"--data_dir={two}"), "room.csv is missing"),
                        (("--source=mars",), "invalid choice")):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, *flags, out)
        assert stopped.value.code == (1 if "error: " in said or "missing" in said or "FIELD" in said else 2)
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
