"""Data: specs, preparation, and two loaders that give the same batches.

Only ffcv_loader.py imports ffcv and numba; the in-memory loader needs torch, NumPy and safetensors alone.
"""

from harness.data.data_source import DataSource, open_data, verify_data
from harness.data.loaders import Batch, EvalLoader, TrainLoader
from harness.data.normalize import normalize
from harness.data.spec import DATASETS, DataSpec, data_spec

__all__ = [
    "DATASETS",
    "Batch",
    "DataSource",
    "DataSpec",
    "EvalLoader",
    "TrainLoader",
    "data_spec",
    "normalize",
    "open_data",
    "verify_data",
]
