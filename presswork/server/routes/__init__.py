"""The protocols, one module a family of paths."""
