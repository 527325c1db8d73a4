"""Download data sets from the first mirror that works, and verify their checksums.

pooch checks the files, and replaces a file only with a correct one. :class:`_Resuming` resumes interrupted downloads.
"""

import contextlib
import os
import sys
import tarfile
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastconv.classifier.data.dataset import DataError
from fastconv.classifier.data.places import PLACES, default_folders
from fastconv.classifier.files import check_output_folder

_TIMEOUT = (10, 30)  # seconds to connect, and seconds between two pieces
_PIECE = 1 << 16
_LINE_INTERVAL = 30.0  # seconds between lines without a terminal
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True)
class Source:
    """The mirrors, in the order in which they are tried, and the MD5 of each file, as torchvision publishes it."""

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


def download(name: str, data_dir: Path | None = None, quiet: bool = False) -> Path:
    """Download the files of the data set ``name``, one of :data:`SOURCES`, that are missing or have a wrong checksum.

    Unpacked files are not checked.

    Args:
        data_dir: the folder in which torchvision's folder, such as ``MNIST/raw``, is created. ``None`` means
            ``$FASTCONV_DATA`` or, if that is not set, the user's cache folder.
        quiet: show no progress. Otherwise, a terminal has a bar, and other outputs a line every 30 s, on stderr.

    Returns:
        The folder with the files.

    Raises:
        DataError: if no mirror provides the correct file. Partial files are kept, and resumed next time.
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
    # The reader prefers an unpacked file, so the packed one is not needed.
    lacking = [file for file in source.checksums if archive or not (into / file.removesuffix(".gz")).is_file()]
    for number, file in enumerate(lacking):
        problems = _fetch(source, file, into, quiet)
        if problems:
            files = ", ".join(lacking[number:])
            raise DataError(
                f"cannot download {file}: {'; '.join(problems)}. Try again later. Or fetch {files} from"
                f" {source.mirrors[0]} by other means, put the files into {into}, and try again"
            )
    if archive:
        for file in lacking:
            _unpack(root / file, folder)
    return folder


def _fetch(source: Source, file: str, folder: Path, quiet: bool) -> list[str]:
    """Download one file, unless it is present and correct. Return why each mirror failed: an empty list on success."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    problems = []
    for mirror in source.mirrors:
        downloader = _Resuming(folder / f".{file}.part", quiet)
        checksum = f"md5:{source.checksums[file]}"
        try:
            try:
                pooch.retrieve(mirror + file, checksum, file, folder, downloader=downloader)
            except ValueError:
                if not downloader.resumed:
                    raise
                # The earlier partial file may have been wrong. It is gone now, so try once more from the start.
                pooch.retrieve(mirror + file, checksum, file, folder, downloader=downloader)
            return []
        except requests.RequestException as error:
            problems.append(f"{urlsplit(mirror).netloc}: {_reason(error)}")
        except ValueError:
            problems.append(f"{urlsplit(mirror).netloc}: its checksum is not {checksum}")
        except OSError as error:
            raise DataError(f"cannot write into {folder}: {error.strerror or error}") from error
    if (folder / file).exists():  # pooch replaces it, but only with a correct file
        problems.append(f"the file that is in {folder} has another checksum")
    return problems


class _Resuming:
    """A downloader for pooch that resumes from the file ``partial``, which an interrupted download left.

    Attributes:
        resumed: whether the last call resumed a download.
    """

    def __init__(self, partial: Path, quiet: bool) -> None:
        self._partial, self._quiet = partial, quiet
        self.resumed = False

    def __call__(self, url: str, output_file: Any, pooch: object) -> None:
        """Download ``url`` into ``output_file``.

        Raises:
            requests.RequestException: if the download fails. ``partial`` then keeps the received bytes.
        """
        import requests

        there = self._partial.stat().st_size if self._partial.is_file() else 0
        # Request no compression during the transfer, because the byte counts must be positions in the stored file.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            answered = response.headers.get("Content-Range", "")
            complete = response.status_code == _RANGE_NOT_SATISFIABLE and answered == f"bytes */{there}"
            if response.status_code == _RANGE_NOT_SATISFIABLE and not complete:
                self._partial.unlink()  # it is longer than the complete file, so it is wrong
                return self(url, output_file, pooch)
            self.resumed = complete or (
                response.status_code == _PARTIAL_CONTENT and answered.startswith(f"bytes {there}-")
            )
            if not complete:
                response.raise_for_status()
                self._write(response, there if self.resumed else 0)
        os.replace(self._partial, output_file)
        return None

    def _write(self, response: Any, there: int) -> None:
        """Append the response to the partial file, which has ``there`` bytes. If ``there`` is 0, replace the file."""
        from tqdm import tqdm

        length = int(response.headers.get("Content-Length", 0))
        name = self._partial.name.removeprefix(".").removesuffix(".part")
        with (
            self._partial.open("ab" if there else "wb") as file,
            # disable=None hides the bar unless stderr is a terminal.
            tqdm(
                total=there + length if length else None,
                initial=there,
                desc=name,
                unit="B",
                unit_scale=True,
                disable=self._quiet or None,
            ) as bar,
        ):
            done, shown = there, time.monotonic()
            for piece in response.iter_content(_PIECE):
                file.write(piece)
                bar.update(len(piece))
                done += len(piece)
                if bar.disable and not self._quiet and time.monotonic() - shown >= _LINE_INTERVAL:
                    shown = time.monotonic()
                    of = f" of {(there + length) / 1e6:,.1f}" if length else ""
                    print(f"{name}: {done / 1e6:,.1f}{of} MB", file=sys.stderr, flush=True)


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
    """Unpack CIFAR-10 into ``folder``, and remove the archive. A file appears there only when it is complete."""
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
