"""FFCV: its loader, kernels and .beton files. The library itself is `ffcv`, without `harness.data`."""
