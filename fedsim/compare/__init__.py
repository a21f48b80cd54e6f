"""Several runs beside each other: one self-contained page, pictures and tables."""
