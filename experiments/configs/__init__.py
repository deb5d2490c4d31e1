"""One file per experiment: its config, with the command, run time and figure to reach on top."""
