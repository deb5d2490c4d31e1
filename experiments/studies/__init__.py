"""Studies behind the figures of docs/: each trains several variants and prints one table."""
