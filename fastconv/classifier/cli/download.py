"""``fastconv download``."""

from pathlib import Path
from typing import Annotated

import typer

from fastconv.classifier.cli.options import Downloadable, path_option
from fastconv.classifier.data import download as downloads


def download(
    name: Annotated[Downloadable, typer.Argument(help="The data set.", show_default=False)],
    data_dir: Annotated[
        Path | None,
        path_option(
            "--data-dir",
            "The folder in which torchvision's folder, such as MNIST/raw, is created."
            " Default: $FASTCONV_DATA or the user's cache folder.",
        ),
    ] = None,
) -> None:
    """Download a data set and verify its checksums. An interrupted download continues where it stopped.

    mnist: 12 MB; handwritten digits; Y. LeCun, C. Cortes and C. Burges, CC BY-SA 3.0.

    fashion-mnist: 31 MB; photographs of clothes; Zalando SE, MIT licence.

    cifar10: 170 MB, 186 MB unpacked; small photographs; A. Krizhevsky, 2009. Its page states no licence. It asks users
    to cite "Learning Multiple Layers of Features from Tiny Images".
    """
    print(f"{name.value} is in {downloads.download(name.value, data_dir)}")
