"""CapFilt as a pipeline: caption web images, filter web and synthetic texts, train, repeat."""

__version__ = "0.1.0"
