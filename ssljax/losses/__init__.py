"""Losses: arrays in, a scalar out. They know no networks, no mesh, no configuration, no state."""
