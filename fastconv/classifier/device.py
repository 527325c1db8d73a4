"""The device that a network is trained or timed on: the CPU or a GPU."""

import torch
from torch import Tensor, nn

from fastconv._ops.library import has_cuda
from fastconv.classifier.distributed import alone
from fastconv.classifier.errors import UserError

#: The data type of the weights and images. With bfloat16, torch.autocast converts them.
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}


def find(name: str, backend: str = "fastconv", instead: str = "use the backend torch") -> torch.device:
    """Return the device ``name``, one of :data:`~fastconv.classifier.config.DEVICES`.

    Args:
        instead: what the error advises if fastconv cannot be built with CUDA.

    Raises:
        UserError: if the device does not exist, or ``backend`` does not support it.
    """
    if name != "cuda":
        return torch.device(name)
    if torch.version.cuda is None:
        raise UserError(f"cannot use a GPU: torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise UserError("cannot use a GPU: torch finds no GPU, or no driver for it")
    if backend == "fastconv" and not has_cuda():
        raise UserError(f"fastconv is built without CUDA: build it with FASTCONV_CUDA=1, or {instead}")
    if not alone():
        raise UserError("a GPU is used by one process only: start it without torchrun, or use the CPU")
    return torch.device("cuda", torch.cuda.current_device())


def place(images: Tensor, labels: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Convert the images, and move them and their labels to the device for all epochs.

    They stay on the CPU if they would take more than half of a GPU's free memory. Then each batch is moved.
    """
    images = images.to(dtype)
    if device.type == "cuda" and not images.is_cuda:
        free, _ = torch.cuda.mem_get_info(device)
        if 2 * images.nbytes > free:
            return images, labels
    return images.to(device), labels.to(device)


def prepare(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move ``model`` to the device, and give its weights the data type and the memory format of a training, in place.

    channels_last is the faster format for both backends: PyTorch's step takes 8 ms with it and 10 ms without (2 threads
    on Zen 5).
    """
    return model.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
