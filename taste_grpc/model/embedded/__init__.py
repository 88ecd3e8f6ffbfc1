"""Checkpoints made here: taste-nano around a small language model that a package ships, and random ones of any size."""
