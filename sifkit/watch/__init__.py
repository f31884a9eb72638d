"""Following a job and its run: what Slurm says, what the trainer logs, and why it ended."""
