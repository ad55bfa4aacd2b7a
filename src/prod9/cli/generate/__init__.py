"""`prod9 generate`: its commands and what they share."""
