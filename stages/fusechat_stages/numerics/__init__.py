"""Arrays in, arrays out: the mathematics of the stages. Knows no store, no model class, no file."""
