"""Use FFCV: loader, kernels and .beton files. The library itself is the package `ffcv`."""
