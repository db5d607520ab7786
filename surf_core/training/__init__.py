"""How the shipped weights were made; never imported by inference."""
