"""Sudoku: puzzles from a seed, their encoding as tokens, and how well a model solves them."""
