"""Libraries that an installation may lack, and the extra of the package that brings each.

`pip install signed-tickets` brings torch, NumPy, safetensors, tqdm, filelock, tyro and rich. All others are optional,
imported on first use, and listed here. networkx needs no extra, because torch requires it.
"""

from __future__ import annotations

import importlib.util

PROJECT = "signed-tickets"
EXTRAS: dict[str, str] = {
    "mlflow": "mlflow",
    "requests": "mlflow",
    "accelerate": "accelerate",
    "psutil": "accelerate",
    "pynvml": "accelerate",
    "datasets": "data",
    "pyarrow": "data",
    "PIL": "data",
    "sklearn": "data",
    "joblib": "data",
    "ffcv": "ffcv",
    "numba": "ffcv",
    "cv2": "ffcv",
    "timm": "networks",
    "torchvision": "networks",
    "matplotlib": "plots",
    "graphviz": "plots",
    "scipy": "stats",
    "statsmodels": "stats",
    "huggingface_hub": "hub",
    "onnx": "onnx",
    "onnxscript": "onnx",
}
"""Name of an optional library in `import` → extra of this package."""


_NAMES = {"PIL": "Pillow", "cv2": "OpenCV", "pynvml": "nvidia-ml-py", "sklearn": "scikit-learn"}
"""Libraries whose users know them by another name."""


class MissingLibraryError(ImportError):
    """An optional library is not installed. The message is one line with the command that installs it."""


def is_installed(library: str) -> bool:
    """Return whether a library can be found. It is not imported."""
    return importlib.util.find_spec(library) is not None


def require(library: str, user: str) -> None:
    """Check that an optional library is installed, before its first import.

    Args:
        library: Name of the library in `import`, a key of `EXTRAS`.
        user: The feature that needs it, at the start of a sentence, such as "the ffcv loader".

    Raises:
        MissingLibraryError: It is not installed.
    """
    if not is_installed(library):
        raise MissingLibraryError(missing(library, user), name=library)


def missing(library: str, user: str) -> str:
    """Return the message about a library that is not installed: the feature, the library and the command."""
    return f"{user} needs {_NAMES.get(library, library)}, which is not installed; run: {install_command(library)}"


def install_command(library: str) -> str:
    """Return the command that installs a library: with its extra of this package, or by its own name."""
    extra = EXTRAS.get(library)
    return f"pip install '{PROJECT}[{extra}]'" if extra else f"pip install {library}"


def explained(error: ImportError, user: str = "this command") -> str | None:
    """Return one line about an import error that an extra of this package solves, or None for any other error.

    Args:
        error: The error.
        user: The feature that needs the library, at the start of a sentence.
    """
    if isinstance(error, MissingLibraryError):
        return str(error)
    library = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and library in EXTRAS:
        return missing(library, user)
    return None
