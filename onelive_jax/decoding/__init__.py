"""Which semantic ids are on air now, and exact beam search among them."""
