"""Data: specs, preparation, and two loaders that give the same batches.

Only ffcv/ and prepare.py import ffcv and numba; memory_loader.py needs torch, NumPy and safetensors alone. Importing
this package loads none of them but NumPy: data are prepared without torch.
"""

from harness.data.data_source import DataSource, open_data, verify_data
from harness.data.loaders import Batch, EvalLoader, TrainLoader
from harness.data.spec import DATASETS, DataSpec, data_spec

__all__ = [
    "DATASETS",
    "Batch",
    "DataSource",
    "DataSpec",
    "EvalLoader",
    "TrainLoader",
    "data_spec",
    "open_data",
    "verify_data",
]
