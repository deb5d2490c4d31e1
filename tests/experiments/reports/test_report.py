import base64
import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments.reports import figures, run_page
from experiments.stages.ab_test import ROWS
from onelive_jax.evaluation import ranking_metrics

PNG = b"\x89PNG\r\n\x1a\n"
EVIL = "<script>alert('x')</script> & \"$x^$\""


def groups(best, worst, n=40):
    places = np.random.default_rng(best).integers(best, worst, n)
    return ranking_metrics.metrics(places, np.arange(n) % 3 > 0)


STRICT, KNN, VIEWERS = groups(1, 4), groups(1, 9), groups(1, 90)
REPORT = {
    "protocols": {"strict": STRICT, "liverec": groups(2, 5)},
    "heuristics": {"viewers": VIEWERS, "own_counts_knn": KNN},
    "training": {"seconds": 431.2, "examples_per_second": 1203.4, "parameters": 1_012_345},
    "tokenizer": {"utilization": {"L0": 1.0, "L1": 0.98, "L0xL1": 0.71}, "collision_rate_sid": 0.2134,
                  "collision_rate_author": 0.4},
    "data": {"rows_read": 100_000, "rows_kept": 99_990, "dropped": {"stop <= start": 10}},
}
JUDGED = {"chosen_step": 3, "loss": "grpo", "validation": [
    {"step": step, "hr@128": 0.9 - step / 1000, "ndcg@10": 0.5, "predicted_reward": 0.1 * step} for step in (0, 3, 6)]}
LIFT = {"control": 1.0, "treatment": 1.1, "lift": 0.1, "low": 0.05, "high": 0.15}
LATER = {
    "reward": {"weights": {"click": 1.5}, "objectives": {"click": {
        "rows": 1234, "mean": 0.1, "auc": 0.7321, "user_auc": None, "users": 3, "ece": 0.0, "ratio": 1.0,
        "score_auc": 0.6, "score_user_auc": 0.6}}},
    "policies": {"policy_dpo": JUDGED}, "recommendations": {"u7": [{
        "rank": 1, "author": "a5", "room": "r9", "score": 1.25, "codes": [3, 1], "views": 2, "viewers": 40}]},
    "ab_tests": [{"control": "W/supervised", "treatment": "W/policy", "requests": 4000,
                  "observed": dict.fromkeys(ROWS, LIFT) | {"gift": LIFT | dict.fromkeys(("lift", "low", "high"))},
                  "expected": dict.fromkeys(ROWS, LIFT | {"lift": 0.0877})}],
}
LOG = [{"step": step, "train/loss": 5.0 / step, "train/gradient_norm": 1.0} for step in range(1, 20)]
LOG += [{"step": 10, "valid/loss": 2.0, "valid/loss_new": None}]


class Page(HTMLParser):
    """Tags that are open at the end, every tag seen, all text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.images = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)


def write(tmp_path, content, **arguments):
    path = run_page.write_html(tmp_path / "report.html", content, **arguments)
    return path.read_text("utf-8")


def test_the_page_is_whole_and_fetches_nothing(tmp_path):
    text = write(tmp_path, REPORT | LATER, config={"seed": 3}, training_log=LOG)
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64,)|url\(|@import", text)
    assert len(page.images) == 5
    for image in page.images:
        assert base64.b64decode(image["src"].split(",", 1)[1]).startswith(PNG)
        assert image["alt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]
    # What is wider than a telephone scrolls in a box of its own, and the page knows a dark theme.
    assert text.count('<div class="scroll"') == text.count("<table") + text.count("<img")
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_the_figures(tmp_path):
    text = " ".join(Page(write(tmp_path, REPORT, config={"seed": 3}, training_log=LOG, title="Tiny run")).text)
    low, high = STRICT["all"]["ndcg@10_interval"]
    gain = STRICT["all"]["ndcg@10"] - KNN["all"]["ndcg@10"]
    for shown in (f"{STRICT['all']['ndcg@10']:.3f}", f"{low:.3f}–{high:.3f}", f"{gain:+.3f}",
                  f"{VIEWERS['new']['mrr']:.3f}", "OneLive (this run)",
                  "Own counts, time and item-kNN", "7.2 min", "1,203", "1,012,345", "21.34 %",
                  "40.00 %", "99,990", "Dropped: stop <= start", "\"seed\": 3", "Tiny run"):
        assert shown in text, shown


def test_the_page_shows_what_later_commands_found(tmp_path):
    text = " ".join(Page(write(tmp_path, REPORT | LATER)).text)
    for shown in ("0.7321", "click 1.50", "Alignment: policy_dpo", "0.8970", "Person u7", "3-1",
                  "A/B test: policy against supervised", "4,000 requests", "+10.00%", "+5.00% … +15.00% *", "+8.77%"):
        assert shown in text, shown
    assert "Alignment" not in " ".join(Page(write(tmp_path, REPORT)).text)
    for term in ("Strict", "q0", "L0xL1", "Repeat"):
        assert any(term in name for name, _ in run_page.TERMS)


def test_the_page_is_written_again_from_the_files_of_a_workdir(tmp_path):
    run_page.refresh(tmp_path)
    assert list(tmp_path.iterdir()) == []  # no run, no page
    for name, value in {"report": REPORT, "config": {"name": "tiny"}, "policy_dpo": JUDGED,
                        "ab_test": LATER["ab_tests"][0]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    run_page.refresh(tmp_path)
    text = " ".join(Page((tmp_path / "report.html").read_text()).text)
    assert "OneLive on tiny" in text
    assert "Alignment: policy_dpo" in text
    assert "A/B test" in text
    assert "Reward model" not in text


def test_every_string_is_escaped(tmp_path):
    content = copy.deepcopy(REPORT)
    content["heuristics"][EVIL] = KNN
    content["data"]["dropped"][EVIL] = 1
    content["tokenizer"]["utilization"][EVIL] = 0.5
    log = [{"step": 1, f"loss {EVIL}": 1.0}]
    text = write(tmp_path, content, config={EVIL: EVIL}, training_log=log, title=EVIL)
    page = Page(text)
    assert "script" not in page.tags
    assert page.open == []
    assert "".join(page.text).count(EVIL) >= 4


def test_missing_parts_are_said_to_be_missing(tmp_path):
    text = write(tmp_path, {"protocols": {"liverec": REPORT["protocols"]["liverec"]}})
    page = Page(text)
    assert page.images == []
    shown = " ".join(page.text)
    for sentence in ("no tokenizer figures", "No losses were logged", "no figures of the log",
                     "settings of this run were not", "no figures under the strict protocol"):
        assert sentence in shown


def test_empty_groups_show_a_dash(tmp_path):
    places = np.array([1, 2, 3])
    only_repeat = ranking_metrics.metrics(places, np.ones(3, bool))
    nobody = ranking_metrics.metrics(np.zeros(0), np.zeros(0, bool))
    assert "<td>–</td>" in write(tmp_path, {"protocols": {"strict": only_repeat}})
    page = Page(write(tmp_path, {"protocols": {"strict": nobody}, "heuristics": {"viewers": nobody}}))
    assert page.images == []


@pytest.mark.parametrize("content", [{}, {"protocols": {}}, {"protocols": None}])
def test_a_report_without_figures_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="has no figures"):
        run_page.write_html(tmp_path / "report.html", content)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_figure_is_named(tmp_path):
    content = copy.deepcopy(REPORT)
    del content["heuristics"]["viewers"]["new"]["hr@64"]
    with pytest.raises(ValueError, match=r"\['heuristics'\]\['viewers'\]\['new'\] lacks 'hr@64'"):
        run_page.write_html(tmp_path / "report.html", content)


def test_every_figure_of_the_evaluation_has_a_column():
    assert set(ranking_metrics.FIGURES) == set(run_page.HEADINGS)


def test_loss_curves_skip_undefined_values_and_put_totals_first():
    log = [{"step": 1, "train/loss_main": 3.0, "train/loss": 4.0, "rate": 0.1}, {"step": 2, "train/loss": None},
           {"step": 3, "train/loss": 2.0}]
    curves = run_page.loss_curves(log)
    assert list(curves) == ["train/loss", "train/loss_main"]
    assert curves["train/loss"] == ([1, 3], [4.0, 2.0])


def test_the_plots_draw_the_figures():
    bars = figures.utilization_plot({"L0": 1.0, "L1": 0.25}).axes[0].patches
    assert [bar.get_height() for bar in bars] == [1.0, 0.25]
    axes = figures.group_plot([("one", STRICT), ("two", KNN)]).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    for expected in (STRICT["all"]["ndcg@10"], KNN["repeat"]["ndcg@10"], KNN["new"]["ndcg@10"]):
        assert expected in widths
    lines = figures.loss_plot({"train/loss": ([1, 2], [4.0, 3.0])}).axes[0].lines
    assert lines[0].get_xydata().tolist() == [[1, 4], [2, 3]]
