"""The report of a run: one self-contained HTML file, drawn from the run folder alone."""
