"""From a log to a trained model, honest numbers and recommendations: all stages in turn."""

import dataclasses
import logging
from pathlib import Path

from experiments.common import calibration, distributed, scoring
from experiments.common.log import Log, prepare
from experiments.common.workdir import save_config
from experiments.reports import run_page
from experiments.stages import evaluate
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import Tokenizer, recall_line, train_tokenizer
from onelive_jax.config import Config
from onelive_jax.files import write_json

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Trained:
    """What a finished run holds in memory."""

    log: Log
    tokenizer: Tokenizer
    model: object
    params: dict
    report: dict


def run(config: Config, workdir: Path) -> Trained:
    """All stages; returns what they made. The report is W/report.json."""
    with distributed.stage("the log"):
        log = prepare(config, workdir)
        for split, protocol in (("validation", "strict"), *(("test", protocol) for protocol in scoring.PROTOCOLS)):
            scoring.targets(log, config, split, protocol)  # a period without targets is better told before training
    tokenizer = train_tokenizer(config, workdir, log)
    model, params, figures = train_supervised(config, workdir, log, tokenizer)
    save_config(config, workdir)  # only now: settings that a stage refuses must not replace those it was made with
    with distributed.stage("evaluation"):
        maker = log.batch_maker(tokenizer.ids, config)
        placed, placed_params = scoring.on_all_devices(config, maker, model, params)
        rank = scoring.make_ranker(placed, config, tokenizer, log)
        weights = evaluate.tuned_weights(config, log)
        results = {protocol: evaluate.evaluate(config, log, rank, placed_params, maker, "test", protocol, weights)
                   for protocol in scoring.PROTOCOLS}
    strict, differences, _ = results["strict"]
    report = {
        "protocols": {protocol: rows["onelive"] for protocol, (rows, _, _) in results.items()},
        "heuristics": {name: row for name, row in strict.items() if name != "onelive"},
        "against_heuristics": differences,
        "not_targets": {protocol: dropped for protocol, (_, _, dropped) in results.items()},
        "heuristics_weights": dataclasses.asdict(weights),
        "training": {"seconds": tokenizer.figures["seconds"] + figures["seconds"],
                     "examples_per_second": figures["examples_per_second"], "parameters": figures["parameters"],
                     "step": figures["chosen_step"]}
                    | {name: figures[name] for name in ("combine", "calibration") if name in figures},
        "tokenizer": tokenizer.figures | {"lives": tokenizer.lives},
        "data": {name: getattr(log.tables.report, name) for name in ("rows_read", "rows_kept", "dropped", "notes")},
    }
    write_json(workdir / "report.json", report)
    run_page.refresh(workdir)
    return Trained(log, tokenizer, model, params, report)


def print_report(trained: Trained, workdir: Path) -> None:
    """The table of metrics beside the heuristics, and where the report is."""
    report = trained.report
    for line in trained.log.tables.report.lines():
        print(line)
    print(f"\nTest split, strict protocol ({report['protocols']['strict']['all']['n']} targets; heuristics tuned on "
          "validation):\n")
    rows = {"OneLive": report["protocols"]["strict"]} | report["heuristics"]
    print(evaluate.format_ranking(rows))
    print("\n" + evaluate.format_dropped(report["not_targets"]["strict"]))
    print("\n" + evaluate.format_differences(report["against_heuristics"]))
    liverec = report["protocols"]["liverec"]["all"]
    print(f"\nliverec protocol: NDCG@10 {liverec['ndcg@10']:.3f}, HR@1 {liverec['hr@1']:.3f}, "
          f"HR@10 {liverec['hr@10']:.3f} (n = {liverec['n']})")
    print(recall_line(report["tokenizer"]))
    speed = report["training"]["examples_per_second"]  # None where a resumed run had no step left
    if "nll" in report["training"].get("calibration", {}):
        print(calibration.line(report["training"]))
    print(f"{report['training']['parameters']:,} parameters, trained in {report['training']['seconds']:.0f} s with the "
          "tokenizer" + (f" ({speed:.0f} examples/s)" if speed else ""))
    print(f"report: {workdir / 'report.json'} and {workdir / 'report.html'}")
