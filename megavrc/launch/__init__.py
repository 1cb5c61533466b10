"""Jobs: SLURM scripts that requeue themselves, and plans of memory, time and cost."""
