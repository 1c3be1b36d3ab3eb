"""The report of a run as a page and as Markdown, drawn from what the run wrote and nothing else."""
