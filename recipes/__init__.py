"""Recipes for `accelerate launch`, one a file; their settings are in `presets`."""
