"""What a run will need and take, from its compiled step: no step is taken, no chip is owned."""
