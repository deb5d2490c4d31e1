"""Figures of a log to look at before training; python -m data_pipelines.report draws them."""
