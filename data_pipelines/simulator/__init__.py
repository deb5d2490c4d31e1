"""The simulated platform: a world whose preferences are known, its log, and the platform played by a policy.

    python -m data_pipelines.simulator --users=1500 --authors=600 --out_dir=TABLES
"""
