"""Run records, local run directories, and the graph between runs."""
