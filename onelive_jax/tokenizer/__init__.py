"""Semantic ids: towers trained on views, residual k-means on their embeddings, codes of (author, moment).

Views come in (`tower_training.ViewLog` → `train_towers`), then embeddings (`residual_kmeans.fit`). `encoder.Encoder`
turns new content into codes, `semantic_ids.IdTable` keeps them; codes go on to batches and, through those, to model/.
"""
