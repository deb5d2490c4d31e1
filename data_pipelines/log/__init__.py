"""A log in memory: people's timelines, who is on air when, content by author and moment, targets to rank for.

In come the canonical tables (data_pipelines/tables.py), through store.py as stored examples. Everything is a plain
array or a small class around arrays that answers many questions at once. Next, batches/ makes the model's arrays of it.
"""
