"""Slurm: what the cluster offers, job files, submitting, jobs. sifkit never schedules by itself."""
