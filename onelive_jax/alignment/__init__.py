"""Alignment to many objectives: reward model, rewards, rollouts and policy losses (paper, section c)."""
