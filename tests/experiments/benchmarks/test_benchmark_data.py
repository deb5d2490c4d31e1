from data_pipelines.readers.kuailive import read_kuailive
from data_pipelines.readers.log import read_log
from data_pipelines.readers.twitch import read_twitch
from experiments.benchmarks import data


def test_the_folder_is_in_the_form_of_kuailive_and_is_measured(tmp_path, capsys):
    measured = data.benchmark_prepare(tmp_path, scale=1e-4)
    assert measured["seconds"] > 0
    assert 0 < measured["memory_gb"] < 8
    printed = capsys.readouterr().out
    assert "limit 300" in printed
    tables = read_kuailive(tmp_path / "kuailive_0.0001")
    assert len(tables.rooms) == round(1e-4 * data.SIZES["rooms"])
    assert tables.interactions["click"].sum() == round(1e-4 * data.SIZES["clicks"])
    assert tables.report.merged["gift.csv: row that belongs to a view"] == 7
    assert tables.rooms["end_ms"].null_count() > 0
    assert not tables.report.notes.get("view that begins before its room does, or after its end")
    written = (tmp_path / "kuailive_0.0001" / "room.csv").stat().st_mtime_ns
    data.write_folder(tmp_path / "kuailive_0.0001", 1e-4)  # whole: left as it is
    assert (tmp_path / "kuailive_0.0001" / "room.csv").stat().st_mtime_ns == written


def test_growth_is_one_table_and_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "measured", lambda source, log, out: (out.mkdir(), {
        "seconds": 1.0, "cpu_seconds": 2.0 * int(log.stem.partition("_")[2]), "memory_gb": 0.5})[1])
    table = data.benchmark_growth(tmp_path, times=(1, 2))
    assert [row[0] for row in table] == ["log", "twitch", "kuailive"]
    assert table[0][2:] == ["1.0 s, 2.0 s, 0.50 GB", "1.0 s, 4.0 s, 0.50 GB", f"{2 / 60_000 * 1e6:.1f} s"]
    assert "a further million rows" in capsys.readouterr().out
    assert len(read_log(tmp_path / "log_1.csv").interactions) > 55_000
    assert len(read_twitch(tmp_path / "twitch_2.csv").interactions) > 150_000
    monkeypatch.setattr(data, "measured", None)
    assert data.benchmark_growth(tmp_path, times=(1, 2)) == table
