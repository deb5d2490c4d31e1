"""The frame of studies: what is kept and refused, what is shared, how seeds are summed up."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.common import study
from experiments.studies import ablation, alignment
from onelive_jax.training.metrics import read


def test_a_finished_study_does_not_come_back_under_other_settings(make_config, tmp_path, monkeypatch):
    """Every setting counts, beside what was asked: here one that no stage of training records."""
    runs = []
    monkeypatch.setattr(alignment, "run_seed", lambda config, *rest: runs.append(config) or {"beams":
                                                                                             config.decoding.beams})
    asked = (tmp_path, ["grpo"], 100, 50)
    assert alignment.study_seed(make_config(), *asked) == {"beams": 16}
    assert alignment.study_seed(make_config(), *asked) == {"beams": 16}
    assert len(runs) == 1
    with pytest.raises(ValueError, match=r"study.json was made with other settings \(decoding.beams: 16 then, 3 now\)"):
        alignment.study_seed(make_config(decoding__beams=3), *asked)
    with pytest.raises(ValueError, match="losses: .*'grpo'.* then"):
        alignment.study_seed(make_config(), tmp_path, ["dpo"], 100, 50)
    with pytest.raises(ValueError, match="alignment.group_size"):
        alignment.study_seed(make_config(alignment__group_size=4), *asked)
    alignment.study_seed(make_config(training__log_every=7, name="other"), *asked)  # how a run is watched is no matter
    (tmp_path / "study.json").unlink()
    assert alignment.study_seed(make_config(decoding__beams=3), *asked) == {"beams": 3}


def test_a_unit_that_fails_keeps_nothing(make_config, tmp_path):
    def fail():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        study.kept(tmp_path / "unit" / study.RESULT, make_config(), fail)
    assert study.kept(tmp_path / "unit" / study.RESULT, make_config(), lambda: (1, 2)) == [1, 2]  # as the file says it


def test_parts_are_shared_by_relative_links_and_own_parts_stay(tmp_path):
    base, folder = tmp_path / "0" / "full", tmp_path / "0" / "other"
    (base / "data").mkdir(parents=True)
    (base / "data" / "rows").write_text("1")
    (folder / "examples").mkdir(parents=True)
    for _ in range(2):
        study.share(base, folder, *study.LOG_PARTS, "tokenizer")
    assert (folder / "data").readlink() == Path("../full/data")
    assert not (folder / "examples").is_symlink()
    assert not (folder / "tokenizer").exists()  # the base has none
    study.share(base, base, *study.LOG_PARTS)
    assert not (base / "data").is_symlink()
    tmp_path.joinpath("0").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "other" / "data" / "rows").read_text() == "1"


def test_seeds_are_summed_up_by_mean_and_sample_deviation():
    assert study.over_seeds([1.0, 2.0, 3.0, None]) == "2.0000 ± 1.0000"
    assert study.over_seeds([0.01, 0.03], "+.2%") == "+2.00% ± 1.41%"
    assert study.over_seeds([0.5]) == "0.5000"
    assert study.over_seeds([None]) == "-"


def test_variants_share_one_tokenizer_unless_they_change_it(finished, make_config, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(study, "train_supervised", lambda config, folder, log, tokenizer: (
        trained.append(tokenizer) or (None, {}, {"chosen_step": 6})))
    base, config = tmp_path / "0" / "full", make_config()
    base.parent.mkdir()
    base.symlink_to(finished.workdir)  # prepared already
    plain = study.train(study.changed(config, {"model.mtp": False}, 0), tmp_path / "0" / "no_mtp", config, base)
    assert plain.tokenizer.figures == finished.trained.tokenizer.figures
    assert (plain.folder / "tokenizer").is_symlink()
    assert not json.loads((plain.folder / "config.json").read_text())["model"]["mtp"]
    own = study.train(study.changed(config, {"tokenizer.codes": 3}, 0), tmp_path / "0" / "codes_3", config, base,
                      share_towers=True)
    assert (own.folder / "examples").is_symlink()
    assert not (own.folder / "tokenizer").is_symlink()
    assert own.tokenizer.encoder.books.codes == 3
    jax.tree.map(np.testing.assert_array_equal, own.tokenizer.encoder.towers.params,
                 plain.tokenizer.encoder.towers.params)
    assert [each.encoder.books.codes for each in trained] == [4, 3]


def test_the_table_of_an_ablation(finished, make_config):
    chosen = json.loads((finished.workdir / "supervised.json").read_text())["chosen_step"]
    row = ablation.validation_of(finished.workdir, chosen)
    lines = [line for line in read(finished.workdir / "supervised") if line["step"] == chosen]
    assert row["hr@10"] == next(line["validation/hr@10"] for line in lines if "validation/hr@10" in line)
    text = ablation.format_variants({"full": [row], "no_mtp": [row, row | {"hr@10": row["hr@10"] + 0.1}]})
    assert text.splitlines()[-2].split()[:2] == ["full", f"{row['ndcg@10']:.4f}"]
    assert text.splitlines()[-1].endswith(f"{row['hr@10'] + 0.05:.4f} ± 0.0707")
    for settings in ablation.VARIANTS.values():
        study.changed(make_config(simulator__authors=300), settings, 1)  # every variant is a config that validates
