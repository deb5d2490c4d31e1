"""From an opened request to ranked rooms: the index of rooms on air, and exact beam search among their semantic ids.

Requests and rooms on air come in, model/ scores codes and rooms; rankings go on to evaluation/, or to who asked.
"""
