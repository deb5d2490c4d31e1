"""The readers as Apache Beam pipelines, for logs that are prepared on many machines.

    python -m data_pipelines.beam --source=kuailive --data_dir=DIR --out_dir=TABLES
"""
