"""The language model that reads and writes words and codes, and its decoding loop."""
