"""Data: sources (a record by its index) and the pipeline (an index to a batch)."""
