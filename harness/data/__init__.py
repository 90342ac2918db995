"""Data sets: specifications, preparation, and loaders that give the same batches.

Only ffcv/ imports ffcv and numba. memory_loader.py needs only torch, NumPy and safetensors. Importing
this package imports none of these except NumPy. Data sets can be prepared without torch.
"""

from harness.data.data_source import (
    DataSource,
    LoaderName,
    choose_loader,
    executable_code,
    open_data,
    verify_data,
)
from harness.data.loaders import Batch, EvalLoader, TrainLoader
from harness.data.own import spec_of
from harness.data.spec import DATASETS, DataSpec, data_spec

__all__ = [
    "DATASETS",
    "Batch",
    "DataSource",
    "DataSpec",
    "EvalLoader",
    "LoaderName",
    "TrainLoader",
    "choose_loader",
    "data_spec",
    "executable_code",
    "open_data",
    "spec_of",
    "verify_data",
]
