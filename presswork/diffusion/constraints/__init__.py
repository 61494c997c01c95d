"""Canvases kept inside a language: distributions of a step conditioned on it, samples and best texts."""
