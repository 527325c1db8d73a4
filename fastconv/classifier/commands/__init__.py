"""The commands, by what they are about: ``train``; ``network``, what a trained one is asked; ``tools``, the others."""
