"""Recipes, one in each file. Launch them with `python` or `accelerate launch`. `presets` holds their settings."""
