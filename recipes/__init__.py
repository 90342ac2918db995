"""What `accelerate launch` runs: one recipe a file, read from top to bottom; `presets` has their settings."""
