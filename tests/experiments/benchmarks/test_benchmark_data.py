from data_pipelines.readers.kuailive import read_kuailive
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
