"""What a study leaves behind: its folder, the lock on a run, the table and the figure."""
