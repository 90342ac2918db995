"""Analysis of finished networks: interpolation, error barriers, ψ, statistics over trials, plots."""
