"""Fetches data sets: from the first mirror that has them, checked, resumed where a download broke off.

pooch does the checking, and the replacing of a file only by a right one; what it lacks, going on with a partial file,
is :class:`_Resuming` here.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastconv.classifier.data.dataset import DataError
from fastconv.classifier.data.places import PLACES, default_folders
from fastconv.classifier.files import check_output_folder

_TIMEOUT = (10, 30)  # seconds: to connect, and between two pieces
_PIECE = 1 << 16
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True)
class Source:
    """The addresses that have the files, each tried in turn, and each file's MD5, as torchvision publishes it."""

    mirrors: tuple[str, ...]
    checksums: dict[str, str]


SOURCES = {
    "mnist": Source(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Source(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
}


def download(name: str, data_dir: Path | None = None) -> Path:
    """Fetch those files of the data set ``name``, one of :data:`SOURCES`, that are not there, or not the right ones.

    What is there unpacked is taken as it is.

    Args:
        data_dir: the folder that then has torchvision's folder below it, as ``MNIST/raw``. If ``None``,
            ``$FASTCONV_DATA``, or else the user's cache folder.

    Returns:
        The folder with the files.

    Raises:
        DataError: if no mirror has a file, or none the right one. What came of it is kept, and gone on with next time.
        OutputError: if the folder cannot be written to.
    """
    source, place = SOURCES[name], PLACES[name]
    root = default_folders()[0] if data_dir is None else data_dir
    folder = root / place.below[0]
    archive = name == "cifar10"
    if archive and all((folder / file).is_file() for file in place.files):
        return folder
    into = root if archive else folder
    check_output_folder(into)
    # A file that is there unpacked is not fetched again: the reader prefers it.
    lacking = [file for file in source.checksums if archive or not (into / file.removesuffix(".gz")).is_file()]
    for number, file in enumerate(lacking):
        problems = _fetch(source, file, into)
        if problems:
            files = ", ".join(lacking[number:])
            raise DataError(
                f"cannot download {file}: {'; '.join(problems)}. Try again later; or fetch {files} from"
                f" {source.mirrors[0]} by other means, put what you have into {into}, and try again"
            )
    if archive:
        for file in lacking:
            _unpack(root / file, folder)
    return folder


def _fetch(source: Source, file: str, folder: Path) -> list[str]:
    """Fetch one file, unless it is there and right. Returns why each mirror failed: nothing if one did not."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    problems = []
    for mirror in source.mirrors:
        downloader = _Resuming(folder / f".{file}.part")
        checksum = f"md5:{source.checksums[file]}"
        try:
            try:
                pooch.retrieve(mirror + file, checksum, file, folder, downloader=downloader)
            except ValueError:
                if not downloader.resumed:
                    raise
                # The part that was there may have been the wrong one. It is gone: once more, from the start.
                pooch.retrieve(mirror + file, checksum, file, folder, downloader=downloader)
            return []
        except requests.RequestException as error:
            problems.append(f"{urlsplit(mirror).netloc}: {_reason(error)}")
        except ValueError:
            problems.append(f"{urlsplit(mirror).netloc}: its checksum is not {checksum}")
        except OSError as error:
            raise DataError(f"cannot write into {folder}: {error.strerror or error}") from error
    return problems


class _Resuming:
    """A downloader for pooch that goes on with ``partial``, where a download before it broke off.

    Attributes:
        resumed: whether the last call did.
    """

    def __init__(self, partial: Path) -> None:
        self._partial = partial
        self.resumed = False

    def __call__(self, url: str, output_file: Any, pooch: object) -> None:
        """Bring ``url`` into ``output_file``.

        Raises:
            requests.RequestException: if that fails on the way; ``partial`` then has what came.
        """
        import requests

        there = self._partial.stat().st_size if self._partial.is_file() else 0
        # The bytes as they are stored, not packed once more on the way, so that they can be counted.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            answered = response.headers.get("Content-Range", "")
            whole = response.status_code == _RANGE_NOT_SATISFIABLE and answered == f"bytes */{there}"
            if response.status_code == _RANGE_NOT_SATISFIABLE and not whole:
                self._partial.unlink()  # longer than the file: not a part of it
                return self(url, output_file, pooch)
            self.resumed = whole or (
                response.status_code == _PARTIAL_CONTENT and answered.startswith(f"bytes {there}-")
            )
            if not whole:
                response.raise_for_status()
                self._write(response, there if self.resumed else 0)
        os.replace(self._partial, output_file)
        return None

    def _write(self, response: Any, there: int) -> None:
        """Write what comes behind the ``there`` bytes that the partial file has; from its start if the server ignored
        the range."""
        from tqdm import tqdm

        length = int(response.headers.get("Content-Length", 0))
        name = self._partial.name.removeprefix(".").removesuffix(".part")
        with (
            self._partial.open("ab" if there else "wb") as file,
            # disable=None: no bar unless stderr is a terminal
            tqdm(
                total=there + length if length else None,
                initial=there,
                desc=name,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            for piece in response.iter_content(_PIECE):
                file.write(piece)
                bar.update(len(piece))


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return "the connection broke off"


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack CIFAR-10's files into ``folder``, each whole or not at all; the archive then goes."""
    try:
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f".{archive.name}-") as temporary:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            folder.mkdir(exist_ok=True)
            for path in (Path(temporary) / folder.name).iterdir():
                os.replace(path, folder / path.name)
        with contextlib.suppress(OSError):
            archive.unlink()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"cannot unpack {archive}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot unpack {archive} into {folder}: {error.strerror or error}") from error
