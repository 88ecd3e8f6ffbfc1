"""Tokenizers, id sets and words."""
