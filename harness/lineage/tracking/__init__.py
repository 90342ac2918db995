"""Nodes as MLflow runs."""
