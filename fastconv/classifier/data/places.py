"""Find the files of a data set below a given folder or below the default folders."""

from dataclasses import dataclass
from pathlib import Path

from fastconv.classifier.data.dataset import ArgumentError, DataError
from fastconv.environment import data_folder

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


DEBIAN = Path("/usr/share/datasets")


@dataclass(frozen=True)
class Place:
    """A data set's title and files, and the folders that may contain them. The first folder is torchvision's.

    ``gz``: whether the files may be gzipped. ``debian``: the Debian package that has the files.
    """

    title: str
    files: tuple[str, ...]
    below: tuple[str, ...]
    gz: bool = True
    debian: str = ""


PLACES = {
    "mnist": Place("MNIST", _IDX_FILES, ("MNIST/raw", "raw", ".")),
    # raw and "." are missing here, because they may contain MNIST's files, which have the same names.
    "fashion-mnist": Place(
        "Fashion-MNIST", _IDX_FILES, ("FashionMNIST/raw", "fashion-mnist"), debian="dataset-fashion-mnist"
    ),
    "cifar10": Place("CIFAR-10", _CIFAR10_FILES, ("cifar-10-batches-py", "."), gz=False),
}


def find_folder(data_dir: Path | None = None, name: str = "mnist") -> Path:
    """Return the folder with the files of the data set ``name``, one of :data:`PLACES`.

    Args:
        data_dir: the only folder to search. If ``None``, the folders of :func:`default_folders` are searched.

    Raises:
        ArgumentError: if no folder has the files.
        DataError: if a folder has only some of them.
    """
    place = PLACES[name]
    if data_dir is not None:
        # Search the given folder only: silently using the data of another folder would be a surprise.
        if not data_dir.is_dir():
            raise DataError(f"{data_dir} is not a folder")
        roots = [data_dir]
    else:
        roots = default_folders()
    forms = " (plain or .gz)" if place.gz else ""
    download = f"fastconv download {name}" + ("" if data_dir is None else f" --data-dir {data_dir}")
    candidates = [folder for root in roots for folder in (root / below for below in place.below)]
    for folder in candidates:
        missing = [file for file in place.files if not _is_there(folder / file, place.gz)]
        if not missing:
            return folder
        if len(missing) < len(place.files):
            raise DataError(f"{folder} lacks {', '.join(missing)}{forms}: '{download}' fetches the missing files")
    searched = ", ".join(str(root) for root in roots)
    debian = f", and so does 'apt install {place.debian}' on Debian" if place.debian and data_dir is None else ""
    raise ArgumentError(
        f"{place.title} was not found under {searched}: '{download}' fetches it{debian}. Or put its files,"
        f" {place.files[0]} and so on{forms}, into a sub-folder {place.below[0]}, or give their folder as ",
        "data_dir",
    )


def default_folders() -> list[Path]:
    """Return the folders to search: ``$FASTCONV_DATA``, the user's cache folder, and the folder of Debian's packages.

    Downloads go to the first.
    """
    from platformdirs import user_cache_path

    folder = data_folder()
    if folder is not None and folder.exists() and not folder.is_dir():
        raise DataError(f"FASTCONV_DATA: {folder} is not a folder")
    return [*([] if folder is None else [folder]), user_cache_path("fastconv"), DEBIAN]


def _is_there(path: Path, gz: bool) -> bool:
    return plain_or_gz(path) is not None if gz else path.is_file()


def plain_or_gz(path: Path) -> Path | None:
    """Return ``path`` or ``path`` with ``.gz``, whichever is a file."""
    compressed = path.with_name(path.name + ".gz")
    return next((candidate for candidate in (path, compressed) if candidate.is_file()), None)
