"""Downloads from servers that run in this process."""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_classifier_data import write_cifar10, write_mnist

from fastconv.classifier import data
from fastconv.classifier.cli.main import main
from fastconv.classifier.data import DataError, download
from fastconv.classifier.data.download import SOURCES, Source

Output = pytest.CaptureFixture[str]
IMAGES = "train-images-idx3-ubyte.gz"


class Server:
    """Serves ``files`` over HTTP. ``asked`` lists the requests: the name of a file, and the range of its bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.knows_ranges = True
        self.breaks_off_after: int | None = None
        self.asked: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name, wanted = self.path.lstrip("/"), self.headers.get("Range")
                server.asked.append((name, wanted))
                content = server.files.get(name)
                if content is None:
                    self.send_error(404)
                    return
                start = 0
                if wanted is not None and server.knows_ranges:
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                    outside = start >= len(content)
                    self.send_response(416 if outside else 206)
                    self.send_header(
                        "Content-Range",
                        f"bytes */{len(content)}" if outside else f"bytes {start}-{len(content) - 1}/{len(content)}",
                    )
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content) - min(start, len(content))))
                self.end_headers()
                self.wfile.write(content[start:][: server.breaks_off_after])

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def second() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def nobody() -> str:
    """An address where no one listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def offer(monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes], *mirrors: Server | str) -> None:
    """Let the data set ``name`` consist of ``files``, on these mirrors."""
    for mirror in mirrors:
        if isinstance(mirror, Server):
            mirror.files = dict(files)
    addresses = tuple(mirror.address if isinstance(mirror, Server) else mirror for mirror in mirrors)
    checksums = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    monkeypatch.setitem(SOURCES, name, Source(addresses, checksums))


@pytest.fixture
def mnist(tmp_path: Path) -> dict[str, bytes]:
    write_mnist(tmp_path / "made", compressed=True)
    return {name: (tmp_path / "made" / name).read_bytes() for name in SOURCES["mnist"].checksums}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("name", "below"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_a_downloaded_data_set_loads_and_is_not_downloaded_again(
    tmp_path: Path,
    server: Server,
    mnist: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
    name: str,
    below: str,
) -> None:
    offer(monkeypatch, name, mnist, server)
    assert main(["download", name, "--data-dir", str(tmp_path / "d")]) == 0
    assert capsys.readouterr() == (f"{name} is in {tmp_path / 'd' / below}\n", "")  # no progress bar without a terminal
    assert names(tmp_path / "d" / below) == sorted(mnist)
    assert len(data.load(name, tmp_path / "d").test_images) == 12
    server.asked.clear()
    download.download(name, tmp_path / "d")
    assert server.asked == []


def test_a_wrong_file_is_replaced_and_an_unpacked_file_is_kept(
    tmp_path: Path, server: Server, mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, "mnist", mnist, server)
    folder = download.download("mnist", tmp_path)
    (folder / IMAGES).write_bytes(b"wrong")
    labels = folder / "t10k-labels-idx1-ubyte.gz"
    labels.with_suffix("").write_bytes(gzip.decompress(labels.read_bytes()))
    labels.unlink()
    server.asked.clear()
    download.download("mnist", tmp_path)
    assert server.asked == [(IMAGES, None)]
    assert (folder / IMAGES).read_bytes() == mnist[IMAGES]


def test_downloads_go_to_fastconv_data_by_default(
    tmp_path: Path, server: Server, mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, "mnist", mnist, server)
    monkeypatch.setenv("FASTCONV_DATA", str(tmp_path / "variable"))
    assert download.download("mnist") == tmp_path / "variable" / "MNIST" / "raw"
    assert data.find_folder() == tmp_path / "variable" / "MNIST" / "raw"


def test_a_file_that_a_mirror_lacks_comes_from_the_next_mirror(
    tmp_path: Path, server: Server, second: Server, mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, "mnist", mnist, nobody(), server, second)
    del server.files[IMAGES]
    folder = download.download("mnist", tmp_path)
    assert second.asked == [(IMAGES, None)]
    assert names(folder) == sorted(mnist)


def test_an_interrupted_download_is_resumed(
    tmp_path: Path, server: Server, mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, "mnist", mnist, server)
    monkeypatch.setattr(download, "_PIECE", 250)  # a piece that does not arrive completely is lost
    server.breaks_off_after = 1000
    with pytest.raises(DataError, match=r"127\.0\.0\.1:\d+: the connection broke off"):
        download.download("mnist", tmp_path)
    folder = tmp_path / "MNIST" / "raw"
    assert names(folder) == [f".{IMAGES}.part"]
    assert (folder / f".{IMAGES}.part").read_bytes() == mnist[IMAGES][:1000]
    server.breaks_off_after = None
    download.download("mnist", tmp_path)
    assert server.asked[:2] == [(IMAGES, None), (IMAGES, "bytes=1000-")]
    assert names(folder) == sorted(mnist)
    assert (folder / IMAGES).read_bytes() == mnist[IMAGES]


@pytest.mark.parametrize("knows_ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize(
    "part",
    [lambda right: right[:500], lambda right: right, lambda right: right + b"x", lambda right: b"x" * 500],
    ids=["half", "whole", "longer", "wrong"],
)
def test_any_partial_file_is_completed_or_replaced(
    tmp_path: Path,
    server: Server,
    mnist: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    part,  # type: ignore[no-untyped-def]
    knows_ranges: bool,
) -> None:
    offer(monkeypatch, "mnist", mnist, server)
    server.knows_ranges = knows_ranges
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / f".{IMAGES}.part").write_bytes(part(mnist[IMAGES]))
    download.download("mnist", tmp_path)
    assert names(folder) == sorted(mnist)
    assert (folder / IMAGES).read_bytes() == mnist[IMAGES]


def test_a_file_with_a_wrong_checksum_is_refused(
    tmp_path: Path, server: Server, second: Server, mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, "mnist", mnist, server, second)
    server.files[IMAGES] = b"<html>Please log in</html>"
    folder = download.download("mnist", tmp_path / "good")
    assert (folder / IMAGES).read_bytes() == mnist[IMAGES]  # from the second mirror
    second.files[IMAGES] = mnist[IMAGES][:-1] + b"x"
    with pytest.raises(DataError, match=r"its checksum is not md5:.*; .*its checksum is not md5:"):
        download.download("mnist", tmp_path / "bad")
    assert names(tmp_path / "bad" / "MNIST" / "raw") == []


def test_without_a_terminal_a_line_says_how_much_is_there(
    tmp_path: Path, server: Server, mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    assert download._LINE_INTERVAL == 30
    monkeypatch.setattr(download, "_LINE_INTERVAL", 0.0)
    monkeypatch.setattr(download, "_PIECE", 4000)
    offer(monkeypatch, "mnist", mnist, server)
    assert main(["download", "mnist", "--data-dir", str(tmp_path / "d")]) == 0
    size = f"{len(mnist[IMAGES]) / 1e6:,.1f}"
    assert f"{IMAGES}: {size} of {size} MB\n" in capsys.readouterr().err
    assert main(["download", "mnist", "--data-dir", str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_without_a_connection_one_line_says_what_to_do(
    tmp_path: Path, mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    offer(monkeypatch, "mnist", mnist, nobody())
    assert main(["download", "mnist", "--data-dir", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("fastconv: cannot download train-images-idx3-ubyte.gz: 127.0.0.1:")
    assert ": no connection. Try again later. Or fetch train-images-idx3-ubyte.gz, train-labels-" in output.err
    assert f"from {SOURCES['mnist'].mirrors[0]} by other means, put the files into {tmp_path}/MNIST/raw" in (output.err)
    assert output.err.count("\n") == 1
    (tmp_path / "MNIST" / "raw" / IMAGES).write_bytes(b"wrong")
    assert main(["download", "mnist", "--data-dir", str(tmp_path)]) == 2
    assert f"; the file that is in {tmp_path}/MNIST/raw has another checksum. Try" in capsys.readouterr().err


def test_a_folder_that_is_not_writable_is_reported_in_one_line(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["download", "mnist", "--data-dir", str(tmp_path / "file")]) == 2
    assert "cannot write into " in capsys.readouterr().err


def tar(folder: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    return file.getvalue()


def test_cifar10_is_unpacked(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "made")
    offer(monkeypatch, "cifar10", {"cifar-10-python.tar.gz": tar(tmp_path / "made")}, server)
    folder = download.download("cifar10", tmp_path / "d")
    assert folder == tmp_path / "d" / "cifar-10-batches-py"
    assert names(tmp_path / "d") == ["cifar-10-batches-py"]
    assert len(data.load("cifar10", tmp_path / "d").train_images) == 20
    download.download("cifar10", tmp_path / "d")
    assert len(server.asked) == 1
    (folder / "test_batch").unlink()
    download.download("cifar10", tmp_path / "d")
    assert (folder / "test_batch").is_file()


@pytest.mark.parametrize("content", [b"no archive", None], ids=["no archive", "reaches outside"])
def test_an_archive_that_cannot_be_unpacked_leaves_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    if content is None:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
        content = file.getvalue()
    offer(monkeypatch, "cifar10", {"cifar-10-python.tar.gz": content}, server)
    with pytest.raises(DataError, match="cannot unpack"):
        download.download("cifar10", tmp_path / "d")
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["cifar-10-python.tar.gz"]
