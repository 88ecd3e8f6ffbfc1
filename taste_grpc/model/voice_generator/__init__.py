"""From speech units to a waveform: flow matching, then a neural source filter."""
