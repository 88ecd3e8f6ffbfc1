"""Hearing: audio and its text to one code row per word."""
