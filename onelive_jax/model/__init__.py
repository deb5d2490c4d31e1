"""The generative model: context, decoder, multi-token prediction, identity head.

Requests (batch.py) come in, their items named by the codes of tokenizer/. `OneLive.open` goes on to decoding/ and
alignment/, `OneLive.__call__` to the losses of training/.
"""
