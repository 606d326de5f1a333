"""Logits that are computed when they are needed: layer, norm, products, model folders."""
