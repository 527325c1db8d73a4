"""``fastconv download``."""

from dataclasses import dataclass
from pathlib import Path

from fastconv.classifier.choices import DOWNLOADS
from fastconv.classifier.cli import options


@dataclass(frozen=True, kw_only=True)
class Download(options.Notes):
    """The options of ``fastconv download``."""

    name: str = options.choice_argument(DOWNLOADS, "The data set", "DATASET")
    data_dir: Path | None = options.path_option(
        "--data-dir",
        "The folder to download to. Files get torchvision's paths in it, such as MNIST/raw.",
        "<folder>",
        show_default="$FASTCONV_DATA, or the user's cache folder",
    )


def download(given: Download) -> None:
    """Download a data set and verify its checksums. An interrupted download continues where it stopped.

    mnist: 12 MB; handwritten digits; Y. LeCun, C. Cortes and C. Burges, CC BY-SA 3.0.

    fashion-mnist: 31 MB; photographs of clothes; Zalando SE, MIT licence.

    cifar10: 170 MB, 186 MB unpacked; small photographs; A. Krizhevsky, 2009. Its page states no licence. It asks users
    to cite "Learning Multiple Layers of Features from Tiny Images".
    """
    from fastconv.classifier.cli.printing import Printer
    from fastconv.classifier.data import download as downloads

    folder = downloads.download(given.name, given.data_dir, given.quiet)
    Printer(given.quiet).note(f"{given.name} is in {folder}")
