"""What a room is worth to a person: the reward model (Pantheon), rewards, and its train step (paper, section c).

Requests and rooms come in; one score a room goes on to alignment/.
"""
