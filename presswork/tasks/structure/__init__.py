"""Texts in random languages: regexes and JSON schemas."""
