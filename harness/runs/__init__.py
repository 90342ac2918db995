"""Finished runs, unfinished runs, their delivery to MLflow, and deletion of files that are no longer needed."""
