"""Analysis of finished networks: interpolation, error barriers, norm parameters, statistics, plots."""
