"""Reports of runs and results as one HTML file, and tables of results for papers (sam4ir report)."""
