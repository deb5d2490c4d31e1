"""What a room is worth to a person: the reward model (Pantheon), its train step, and rewards (paper, section c).

Requests, rooms and feedback come in; one reward a candidate goes on to alignment/.
"""
