"""The stages of a workdir, in order: tokenizer, supervised, reward, policy; then evaluate, recommend, play.

A stage takes a config, a workdir and what the stages before it made. Commands call stages; stages call no command.
"""
