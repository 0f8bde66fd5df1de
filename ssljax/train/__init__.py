"""The step, its placement, the loop, and what a run leaves."""
