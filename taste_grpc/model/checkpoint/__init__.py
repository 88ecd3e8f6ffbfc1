"""From published checkpoint directories and hub ids to a loaded network."""
