"""Molecules as SMILES: characters, MOSES' sets, evaluation by RDKit."""
