"""Source files become canonical tables (data_pipelines/tables.py), with every dropped row counted."""
