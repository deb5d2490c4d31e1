"""Alignment to many objectives: rollouts, policy losses and the policy step (paper, section c).

A trained model, batches and rewards (reward/) come in; parameters of an aligned policy go on to decoding/.
"""
