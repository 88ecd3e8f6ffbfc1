"""From words and codes to speech units."""
