"""Readers of raw images: archives, folders, IDX files, the Hugging Face hub."""
