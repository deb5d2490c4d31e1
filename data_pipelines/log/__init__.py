"""A log ready for use: timelines of people, who is on air when, content, side features, ranking tasks, the store.

Canonical tables come in; batches/ and the tokenizer read what is made here.
"""
