"""Load a run's network with `mlflow.pyfunc.load_model`. MLflow imports this module, because MLmodel names it.

No pickle and no code of the run is executed. A network that is defined in a user's file needs
`model_config={"trust_code": True}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.escape import one_line
from harness.lineage.bundle import MANIFEST, MODEL, bundled_file, is_bundle
from harness.lineage.mlmodel import MLMODEL, asks_for_trust
from harness.lineage.nodes.local_files import DETERMINANTS, check_file, read_record
from harness.lineage.nodes.record import CHECKPOINT
from harness.lineage.recorded_network import read_model

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


class ImageClassifier:
    """A network that maps NumPy images to logits."""

    def __init__(self, model: nn.Module, device: str = "cpu") -> None:
        self.model, self.device = model.to(device).train(False), device

    def predict(self, images: np.ndarray[Any, Any], params: Mapping[str, Any] | None = None) -> np.ndarray[Any, Any]:
        """Return the logits of images, float32 [N, classes].

        Args:
            images: Normalised images, float32 [N, channels, height, width].
            params: Ignored. MLflow passes it.

        Raises:
            TypeError: The images are no array.
            ValueError: The array has not four dimensions, or has no numbers.
        """
        import numpy as np
        import torch

        if not isinstance(images, np.ndarray):
            raise TypeError(
                "predict takes a NumPy array of images, float32 [N, channels, height, width], not a "
                f"{type(images).__name__}"
            )
        if images.ndim != 4 or images.dtype.kind not in "fiub":
            raise ValueError(
                "predict takes images as float32 [N, channels, height, width], not "
                f"{images.dtype} {list(images.shape)}; a single image needs images[None]"
            )
        batch = torch.from_numpy(np.array(images, np.float32))  # a copy: torch refuses negative strides
        with torch.inference_mode():
            logits: torch.Tensor = self.model(batch.to(self.device))
        return logits.float().cpu().numpy()


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ImageClassifier:
    """Return the network of a directory: the files of a run, or an exported directory.

    Args:
        path: The directory of MLmodel.
        model_config: `trust_code` and `device`.

    Raises:
        TypeError: `trust_code` is no bool.
        ValueError: A file was altered, the network cannot be built, or torch has no such device here. The message has
            the reason and the remedy.
    """
    from harness.checkpoint import Checkpoint

    # Phase: read the options. MLflow also takes them from MLmodel, which may come from a stranger.
    directory = Path(path)
    options = {"trust_code": False, "device": "cpu", **(model_config or {})}
    trust_code, device = options["trust_code"], str(options["device"])
    if trust_code and (directory / MLMODEL).exists() and asks_for_trust((directory / MLMODEL).read_bytes()):
        raise ValueError(
            f"{directory / MLMODEL} itself sets trust_code: it was altered. Read the run's code, and load the network "
            "with harness.load_network(…, trust_code=True)"
        )
    if not isinstance(trust_code, bool):  # a text such as "false" must not execute a file
        raise TypeError(f"trust_code is {trust_code!r:.80}; give True or False")
    _check_device(device)

    # Phase: find the files, with their digests checked.
    if not is_bundle(directory) and (directory / MODEL).exists():
        raise ValueError(f"{directory} has {MODEL} but no {MANIFEST}: copy or download the whole exported directory")
    record = None if is_bundle(directory) else read_record(directory)

    def file(name: str) -> Path:
        if record is None:
            return bundled_file(directory, name)
        if name not in record.files:
            raise ValueError(f"{record.name} has no {name}: an early version of the harness made it")
        return check_file(directory, record, name)

    # Phase: build the network, and fill it.
    model = read_model(file(DETERMINANTS), file, trust_code=trust_code)
    Checkpoint.load(file(CHECKPOINT)).load_into_(model)
    return ImageClassifier(model, device)


def _check_device(name: str) -> None:
    """Raise ValueError if torch cannot compute on a device of this name, such as "cuda:1"."""
    import torch

    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {one_line(error):.200}; give cpu or cuda") from None
