"""What can be said about finished networks: interpolation, error barriers, signs, summaries, plots."""
