"""Repeats the paper's tables and figures one by one, and writes the page that sets them beside the paper's.

    python -m experiments.reproduce --all --workdir=W [--twitch=FILE.csv] [--amazon=FOLDER] [--seeds=3]
    python -m experiments.reproduce --table=2 --workdir=W --twitch=FILE.csv        # or --figure=3

Each runs by its own command in W/NAME; a killed one goes on where it was when this command is typed again, and what is
done is not repeated. --all leaves out what needs a log that is not named, and says so. Hours are counted over all runs.
--page alone writes the page of what has been run.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.studies.reproduce import items, page, run_item
    from onelive_jax.files import write_whole

    values = absl_flags.FLAGS
    paths = {name: str(Path(getattr(values, name)).expanduser().resolve()) if getattr(values, name) else ""
             for name in ("twitch", "amazon")}
    known = items(paths["twitch"], paths["amazon"], values.seeds)
    wanted = [name for name in known if values.all or name.split("_")[0] in (f"table{values.table}",
                                                                            f"figure{values.figure}")]
    if values.table == 2:
        wanted = ["public", *wanted]
    if not wanted and not values.page:
        raise ValueError("say what to repeat: --all, --table=1 … 6, --figure=3 or 4 (or --page, the page alone)")
    for name in wanted:
        if (need := known[name].needs) and not paths[need]:
            print(f"{known[name].title}: left out, it needs --{need}")
            continue
        run_item(name, known[name], workdir)
        write_whole(Path(values.out), page(known, workdir))
    write_whole(Path(values.out), page(known, workdir))
    print(values.out)


if __name__ == "__main__":
    flags.define_config("demo")
    absl_flags.DEFINE_boolean("all", False, "every table and figure")
    absl_flags.DEFINE_boolean("page", False, "write the page of what has been run")
    absl_flags.DEFINE_integer("table", 0, "one table of the paper", lower_bound=0, upper_bound=6)
    absl_flags.DEFINE_integer("figure", 0, "one figure of the paper", lower_bound=0, upper_bound=4)
    absl_flags.DEFINE_string("twitch", "", "Twitch log, for Table 2")
    absl_flags.DEFINE_string("amazon", "", "folder of Beauty.txt, for the public check of the baselines")
    absl_flags.DEFINE_integer("seeds", 3, "seeds of Table 2, worlds of Table 3", lower_bound=1)
    absl_flags.DEFINE_string("out", "docs/reproduce.md", "the page")
    flags.run(main)
