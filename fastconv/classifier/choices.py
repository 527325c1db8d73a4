"""The names that the command offers. They are repeated here, because the command's help must not wait for torch."""

#: The data sets that :func:`fastconv.classifier.data.load` knows.
DATASETS = ("mnist5k", "mnist", "fashion-mnist", "cifar10", "folder")
#: The data sets in :data:`fastconv.classifier.data.download.SOURCES`.
DOWNLOADS = ("mnist", "fashion-mnist", "cifar10")
#: The keys of :data:`fastconv.classifier.augment.AUGMENTATIONS`.
AUGMENTATIONS = ("none", "shift", "affine", "flip")
#: The formats of :func:`fastconv.classifier.export.write`, and their file name endings.
SUFFIXES = {"safetensors": ".safetensors", "torch": ".pt", "pt2": ".pt2", "onnx": ".onnx"}
#: The largest height and width of the images of the data set ``folder``.
MAX_IMAGE_SIZE = 1024
