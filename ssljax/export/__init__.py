"""Encoders in the formats of other people, and the way back in."""
