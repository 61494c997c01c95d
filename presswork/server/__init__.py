"""The HTTP server: the protocols people already use, over one engine a model."""
